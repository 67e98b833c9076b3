//! Sockets that speak with somebody who may be reached and turn to another one: many ways in one world.

use std::time::Duration;

use egress_tests::{eventually, report::Attempt};

use crate::{
    bench::{ALLOWED, Bench, DENIED},
    table::{Outcome, Technique},
};

/// One way, as `probe turn` knows it.
struct Turn {
    way: &'static str,
    name: &'static str,
    why: &'static str,
    /// For which families: IPv4, IPv6.
    families: [bool; 2],
    /// It leaves to an allowed address; else it is refused wherever it goes.
    passes: bool,
}

const fn turn(way: &'static str, name: &'static str, why: &'static str) -> Turn {
    Turn {
        way,
        name,
        why,
        families: [true, true],
        passes: true,
    }
}

const PACKET: &str = "`skb_egress` judges each packet";
const CALLED: &str =
    "`connect4`, `connect6`; a SYN begins a new flow, whatever the socket did before";

const TURNS: &[Turn] = &[
    turn(
        "cork",
        "a datagram that is begun for one peer (`MSG_MORE`) and ended by a call to another",
        PACKET,
    ),
    turn(
        "segment",
        "many datagrams in one buffer (`UDP_SEGMENT`)",
        PACKET,
    ),
    turn("splice", "`splice` from a pipe to a socket", PACKET),
    turn(
        "ping",
        "a ping socket that is connected to one address, and `sendto` another",
        PACKET,
    ),
    turn(
        "raw",
        "a raw socket that is connected to one address, and `sendto` another",
        PACKET,
    ),
    turn(
        "race",
        "threads that connect one socket to two peers in turn, while another one sends",
        "what a socket remembers is read whole, with its destination",
    ),
    turn(
        "same-port",
        "a second socket at the port of one that speaks with an allowed peer (`SO_REUSEPORT`)",
        PACKET,
    ),
    turn(
        "listener",
        "a listener that stops listening and connects",
        CALLED,
    ),
    turn(
        "accepted",
        "a socket that was accepted, is disconnected, and connects",
        CALLED,
    ),
    turn(
        "accepted-fast",
        "the same by `MSG_FASTOPEN`, without `connect()`",
        CALLED,
    ),
    Turn {
        passes: false,
        ..turn(
            "accepted-repair",
            "the same without a SYN (`TCP_REPAIR`)",
            "`connect4`, `connect6`: they see this connect, too",
        )
    },
    turn(
        "failed",
        "a TCP socket whose connect failed, and which connects elsewhere",
        CALLED,
    ),
    Turn {
        families: [true, false],
        ..turn(
            "form",
            "an IPv6 socket that becomes one of IPv4 (`IPV6_ADDRFORM`)",
            PACKET,
        )
    },
    Turn {
        passes: false,
        families: [true, false],
        ..turn(
            "route",
            "a source route in a control message (`IP_RETOPTS`)",
            "`skb_egress` denies it, wherever it leads",
        )
    },
    turn("next-hop", "another next hop (`IPV6_NEXTHOP`)", PACKET),
    turn(
        "options",
        "send times, priorities and pacing (`SO_TXTIME`, `SO_PRIORITY`)",
        PACKET,
    ),
    turn(
        "smc",
        "shared memory communications (`AF_SMC`), which fall back to TCP. Tried where the kernel has them",
        CALLED,
    ),
];

/// Rows of the table.
pub(crate) fn techniques() -> impl Iterator<Item = Technique> {
    TURNS.iter().map(|turn| Technique {
        name: turn.name,
        outcome: Outcome::Stopped,
        why: turn.why,
    })
}

#[test]
fn a_socket_that_turns_to_another_peer_is_judged_again() {
    let Some(bench) = Bench::new() else { return };
    for turn in TURNS {
        for family in 0..2 {
            let go = |to: &str, first: &str| -> Attempt {
                bench.client.probe(&["turn", turn.way, to, "9000", first])
            };
            let (denied, allowed) = (DENIED[family], ALLOWED[family]);
            if !turn.families[family] {
                continue;
            }
            let first = ["10.79.0.3", "fd79::3"][family];
            let (attempt, moved) = bench.agent.counted(|| go(denied, first));
            if attempt.stage == "socket" {
                eprintln!("{}: this kernel has none: {attempt:?}", turn.way);
                continue;
            }
            assert!(!attempt.ok, "{}: {attempt:?}", turn.way);
            assert!(moved.denied > 0, "{}: {attempt:?} {moved:?}", turn.way);
            assert_ne!(attempt.stage, "first", "{}: {attempt:?}", turn.way);
            let before = bench.left_to(allowed);
            let attempt = go(allowed, first);
            let left = || bench.left_to(allowed) > before;
            let seen = turn.passes && eventually(Duration::from_secs(2), left);
            assert_eq!(seen, turn.passes, "{}: {attempt:?}", turn.way);
        }
    }
    bench.settle();
    for denied in DENIED {
        assert_eq!(bench.left_to(denied), 0);
    }
}
