use egress_common::{policy::protocol, verdict::Reason};

use super::{entry::TEXT_BYTES, *};
use crate::{
    api::model::Observation,
    observed::testing::{address, at, names, packet},
};

fn small(names: usize, addresses: usize) -> Table {
    Table::new(TableLimits {
        names,
        addresses,
        flows: 64,
    })
}

fn of(table: &Table) -> Vec<Observation> {
    table.observations().observations
}

/// Names of the observations, or their first addresses.
fn destinations(table: &Table) -> Vec<String> {
    let name = |one: &Observation| match (&one.name, one.addresses.first()) {
        (Some(name), _) => name.clone(),
        (None, address) => address.expect("one of them").to_string(),
    };
    of(table).iter().map(name).collect()
}

#[test]
fn packets_of_one_flow_count_once_and_move_its_last_time() {
    let mut table = Table::default();
    let first = packet(0, "api.example.com", 443);
    for seconds in [0, 1, 3, 7, 15] {
        table.record(&Packet {
            at: at(seconds),
            ..first
        });
    }
    let [one] = &of(&table)[..] else { panic!() };
    assert_eq!((one.flows, one.first, one.last), (1, at(0), at(15)));
    // Another port of the sender is another flow; so is one after a long silence.
    table.record(&packet(16, "api.example.com", 443));
    table.record(&Packet {
        at: at(200),
        ..first
    });
    assert_eq!(of(&table)[0].flows, 3);
    // A flow that goes on for long is still one.
    let long = packet(300, "long.example.com", 443);
    for seconds in (300..900).step_by(30) {
        table.record(&Packet {
            at: at(seconds),
            ..long
        });
    }
    assert_eq!((of(&table)[1].flows, of(&table)[1].last), (1, at(870)));
}

#[test]
fn a_flow_keeps_the_name_that_it_began_with() {
    let mut table = Table::default();
    let flow = Packet {
        names: names(&["first.example.com", "older.example.com"]),
        ..packet(0, "", 443)
    };
    table.record(&flow);
    // Meanwhile the scope asks for another name of the address.
    table.record(&Packet {
        at: at(1),
        names: names(&["second.example.com", "first.example.com"]),
        ..flow
    });
    let [one] = &of(&table)[..] else { panic!() };
    assert_eq!(one.name.as_deref(), Some("first.example.com"));
    assert_eq!(one.other_names, ["older.example.com"]);
}

#[test]
fn refused_connects_have_no_source_yet_and_each_is_one() {
    let mut table = Table::default();
    let connect = Packet {
        source: IpAddr::from([0, 0, 0, 0]),
        source_port: 0,
        verdict: Verdict::Deny,
        ..packet(0, "api.example.com", 443)
    };
    table.record(&connect);
    table.record(&connect);
    assert_eq!(of(&table)[0].flows, 2);
}

#[test]
fn an_address_is_explained_by_an_earlier_lookup_of_its_scope_for_a_day() {
    let mut table = Table::default();
    table.record(&packet(0, "api.example.com", 443));
    let bare = packet(10, "", 443);
    let day = 24 * 3600;
    table.record(&Packet {
        port: Some(80),
        ..bare
    });
    table.record(&Packet {
        scope: "web",
        ..bare
    });
    table.record(&Packet {
        destination: address(8),
        ..bare
    });
    table.record(&Packet {
        at: at(day),
        port: Some(81),
        ..bare
    });
    let address = address(7).to_string();
    let seen: Vec<_> = of(&table)
        .into_iter()
        .map(|one| (one.scope, one.name, one.port, one.addresses[0].to_string()))
        .collect();
    let name = || Some("api.example.com".to_owned());
    let row = |scope: &str, name, port, address: &str| {
        (scope.to_owned(), name, Some(port), address.to_owned())
    };
    assert_eq!(
        seen,
        [
            row("node", name(), 80, &address),
            row("node", name(), 443, &address),
            row("node", None, 81, &address),
            row("node", None, 443, "192.0.2.8"),
            row("web", None, 443, &address),
        ]
    );
}

#[test]
fn what_rules_do_not_decide_is_counted_without_its_destination_and_what_always_passes_is_not() {
    let mut table = Table::default();
    for (number, reason) in [(1, Reason::Fragment), (2, Reason::Fragment)] {
        table.record(&Packet {
            destination: address(number),
            port: Some(1000),
            reason,
            ..packet(0, "", 0)
        });
    }
    for reason in [Reason::Lifeline, Reason::Loopback, Reason::Reply] {
        table.record(&Packet {
            verdict: Verdict::Allow,
            reason,
            ..packet(0, "", 53)
        });
    }
    let [one] = &of(&table)[..] else { panic!() };
    assert_eq!((&*one.reason, one.flows, one.port), ("fragment", 2, None));
}

#[test]
fn lists_are_cut_and_say_so() {
    let mut table = Table::default();
    for number in 0..5 {
        let sender = format!("/job-{number}.service");
        table.record(&Packet {
            sender: &sender,
            ..packet(0, "api.example.com", 443)
        });
        let is_cut = of(&table)[0].is_cut;
        assert_eq!(is_cut, number == 4, "{number}");
    }
    assert_eq!(of(&table)[0].senders.len(), 4);
    let long = format!("/{}ü", "x".repeat(253));
    table.record(&Packet {
        sender: &long,
        ..packet(0, "other.example.com", 443)
    });
    // Not cut inside a character.
    assert_eq!(of(&table)[1].senders[0].len(), 254);
}

#[test]
fn a_full_table_drops_what_is_allowed_first_then_the_oldest_and_counts_it() {
    let mut table = small(4, 2);
    for (seconds, name) in [(1, "a"), (2, "b"), (3, "c")] {
        table.record(&packet(seconds, name, 443));
    }
    table.record(&Packet {
        verdict: Verdict::Allow,
        reason: Reason::NameRule,
        ..packet(4, "allowed", 443)
    });
    assert_eq!((table.len(), table.dropped()), (4, 0));
    table.record(&packet(5, "d", 443));
    assert_eq!(destinations(&table), ["a", "b", "c", "d"]);
    table.record(&packet(6, "e", 443));
    assert_eq!(destinations(&table), ["b", "c", "d", "e"]);
    // Addresses have a room of their own.
    for number in 1..=5 {
        table.record(&Packet {
            destination: address(number),
            ..packet(number.into(), "", 443)
        });
    }
    let left = ["b", "c", "d", "e", "192.0.2.4", "192.0.2.5"];
    assert_eq!(destinations(&table), left);
    assert_eq!((table.len(), table.capacity()), (6, 6));
    assert_eq!(table.dropped(), 5);
    let [loss] = &table.observations().losses[..] else {
        panic!()
    };
    assert_eq!((loss.first, loss.last), (at(5), at(6)));
    // A flow whose observation was dropped is seen anew with its next packet.
    let gone = packet(7, "f", 443);
    table.record(&gone);
    for name in ["g", "h", "i", "j"] {
        table.record(&packet(8, name, 443));
    }
    assert!(!destinations(&table).contains(&"f".to_owned()));
    table.record(&Packet { at: at(9), ..gone });
    assert!(destinations(&table).contains(&"f".to_owned()));
}

#[test]
fn a_flood_stays_within_the_bounds_and_nothing_of_it_is_lost_silently() {
    let limits = TableLimits {
        names: 300,
        addresses: 100,
        flows: 400,
    };
    let mut table = Table::new(limits);
    for number in 0..2_000_u32 {
        let name = format!("{number}.example.com");
        table.record(&packet(number.into(), &name, 443));
        table.record(&Packet {
            destination: address(number << 10),
            ..packet(number.into(), "", 443)
        });
        assert!(table.flows.held().iter().all(|held| *held <= limits.flows));
        assert!(table.len() <= table.capacity());
        assert!(table.explained.len() <= limits.names * LISTED);
    }
    assert!(table.len() > 350);
    assert_eq!(table.len() as u64 + table.dropped(), 4_000);
}

#[test]
fn a_full_table_of_the_longest_texts_can_be_read_again() {
    let mut table = Table::default();
    // Backslashes take two bytes each on disk.
    let long = |begin: usize| format!("{begin}{}", "\\".repeat(TEXT_BYTES));
    let names: Vec<Arc<str>> = (0..6).map(|name| Arc::from(long(name))).collect();
    for number in 0..6 {
        table.record(&Packet {
            scope: &long(0),
            sender: &long(number),
            names: &names,
            destination: format!("2001:db8:1111:2222:3333:4444:5555:666{number}")
                .parse()
                .expect("an address"),
            ..packet(1, "", 443)
        });
    }
    let one = serde_json::to_vec(&of(&table)).expect("JSON").len();
    let all = u64::try_from(one * table.capacity()).expect("fits");
    assert!(all < crate::observed::store::MAX_FILE_BYTES, "{all}");
}

#[test]
fn totals_of_others_are_losses_from_the_second_look_on() {
    let mut table = Table::default();
    table.lost_in_total("events_lost", 40, at(1));
    assert_eq!(table.observations().losses, []);
    table.lost_in_total("events_lost", 42, at(2));
    table.lost_in_total("events_lost", 42, at(3));
    // The kernel's programs were removed and loaded again.
    table.lost_in_total("events_lost", 5, at(4));
    let losses = table.observations().losses;
    let expected = Loss {
        what: "events_lost".into(),
        count: 7,
        first: at(2),
        last: at(4),
    };
    assert_eq!(losses, [expected]);
}

#[test]
fn what_was_kept_is_restored_and_goes_on() {
    let mut before = Table::default();
    before.record(&packet(1, "api.example.com", 443));
    before.record(&Packet {
        destination: "2001:db8::1".parse().expect("an address"),
        protocol: 47,
        port: None,
        verdict: Verdict::Deny,
        reason: Reason::PortNotAllowed,
        ..packet(2, "", 0)
    });
    before.record(&Packet {
        protocol: protocol::ICMP,
        reason: Reason::Malformed,
        ..packet(3, "", 0)
    });
    before.lose("events_lost", 2, at(3));
    before.lost_in_total("events_lost", 2, at(3));
    let mut table = Table::default();
    table.restore(before.observations(), before.totals(), at(5));
    assert_eq!(table.observations(), before.observations());
    assert_eq!(table.change(), Change::Nothing);
    // The agent knows no names after a restart.
    table.record(&packet(6, "", 443));
    table.lost_in_total("events_lost", 9, at(6));
    let seen = table.observations();
    assert_eq!(seen.observations.len(), 3);
    assert_eq!(seen.observations[0].flows, 2);
    assert_eq!(seen.losses[0].count, 9);
    assert_eq!(table.take_change(), Change::Observations);
}

#[test]
fn what_this_version_cannot_know_is_dropped_and_counted() {
    let mut before = Table::default();
    for name in ["a", "b", "c", "d"] {
        before.record(&packet(1, name, 443));
    }
    let mut seen = before.observations();
    seen.observations[0].reason = "because".into();
    seen.observations[1].verdict = "maybe".into();
    seen.observations[2].protocol = "quic".into();
    let twin = seen.observations[3].clone();
    seen.observations.push(twin);
    let mut table = Table::default();
    table.restore(seen, BTreeMap::new(), at(5));
    assert_eq!((table.len(), table.dropped()), (1, 4));
    assert_eq!(destinations(&table), ["d"]);
}

#[test]
fn smaller_bounds_keep_the_newest_of_what_was_kept() {
    let mut before = Table::default();
    for (seconds, name) in [(9, "a"), (1, "b"), (5, "c")] {
        before.record(&packet(seconds, name, 443));
    }
    let mut table = small(2, 2);
    table.restore(before.observations(), BTreeMap::new(), at(10));
    assert_eq!(destinations(&table), ["a", "c"]);
    assert_eq!(table.dropped(), 1);
}
