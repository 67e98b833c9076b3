//! Answers of a trusted resolver to something else than the question: none of them teaches.

use std::{net::IpAddr, thread, time::Duration};

use egress_tests::{
    World,
    expect::{reached, refused},
    packets::to_hex,
    report::Attempt,
    world::Role,
    zone,
};

use crate::{
    bench::Bench,
    table::{Outcome, Technique},
};

/// Policies of these tests allow the names below it.
const ZONE: &str = "craft.example.com";
/// The first address that a lie would teach; each has its own, by its place in the list.
const FIRST: [u8; 4] = [10, 78, 40, 1];

const A: u16 = 1;
const NS: u16 = 2;
const CNAME: u16 = 5;
const TXT: u16 = 16;
const AAAA: u16 = 28;
const DNAME: u16 = 39;
const OPT: u16 = 41;
const IN: u16 = 1;
/// The name in the question.
const ASKED: &[u8] = &[0xc0, 12];
/// An answer that came out well.
const GOOD: u16 = 0x8180;

/// A record.
fn record(owner: &[u8], kind: u16, class: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = owner.to_vec();
    bytes.extend(kind.to_be_bytes());
    bytes.extend(class.to_be_bytes());
    bytes.extend(ttl.to_be_bytes());
    bytes.extend((data.len() as u16).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// A name on the wire.
fn name(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in text.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// An address record of the name in the question.
fn address(lie: &[u8]) -> Vec<u8> {
    record(ASKED, A, IN, 300, lie)
}

/// Fields of a message behind the id, and bytes behind the question.
struct Message {
    flags: u16,
    counts: [u16; 4],
    rest: Vec<u8>,
}

fn message(flags: u16, counts: [u16; 4], rest: Vec<u8>) -> Message {
    Message {
        flags,
        counts,
        rest,
    }
}

/// One answer record.
fn one(rest: Vec<u8>) -> Message {
    message(GOOD, [1, 1, 0, 0], rest)
}

/// One lie, made for the address that it is to teach.
struct Lie {
    name: &'static str,
    why: &'static str,
    answer: fn(&[u8]) -> Message,
}

const fn lie(name: &'static str, why: &'static str, answer: fn(&[u8]) -> Message) -> Lie {
    Lie { name, why, answer }
}

const SECTION: &str = "`skb_ingress` reads records of the answer section alone";
const HEADER: &str = "`skb_ingress`: it is no answer, or one that failed";
const OWNER: &str =
    "`skb_ingress`: records count whose owner is on the chain of aliases from the question";
const FORM: &str = "`skb_ingress`: what is broken teaches nothing";
const UNTAUGHT: &str = "no answer teaches such addresses";

const LIES: &[Lie] = &[
    lie(
        "an address in the additional section of an answer",
        SECTION,
        |lie| message(GOOD, [1, 0, 0, 1], address(lie)),
    ),
    lie(
        "an address in the authority section of an answer",
        SECTION,
        |lie| message(GOOD, [1, 0, 1, 0], address(lie)),
    ),
    lie(
        "glue: an address in the additional section for the server in the authority section",
        SECTION,
        |lie| {
            let server = record(ASKED, NS, IN, 300, ASKED);
            message(GOOD, [1, 0, 1, 1], [server, address(lie)].concat())
        },
    ),
    lie("more records than the header counts", SECTION, |lie| {
        message(GOOD, [1, 0, 0, 0], address(lie))
    }),
    lie(
        "an address in an answer with an error code (SERVFAIL, REFUSED)",
        HEADER,
        |lie| message(0x8182, [1, 1, 0, 0], address(lie)),
    ),
    lie(
        "an address in a message that is a question itself",
        HEADER,
        |lie| message(0x0100, [1, 1, 0, 0], address(lie)),
    ),
    lie(
        "an address in an answer of another operation (NOTIFY, UPDATE)",
        HEADER,
        |lie| message(0xa180, [1, 1, 0, 0], address(lie)),
    ),
    lie("an answer that repeats no question", HEADER, |lie| {
        message(GOOD, [0, 1, 0, 0], address(lie))
    }),
    lie("an answer with a second question", HEADER, |lie| {
        let second = [&name("evil.example.org")[..], &[0, 1, 0, 1]].concat();
        message(GOOD, [2, 1, 0, 0], [second, address(lie)].concat())
    }),
    lie(
        "the address of the parent of what was asked for",
        OWNER,
        |lie| one(record(&name(ZONE), A, IN, 300, lie)),
    ),
    lie("the address of the root", OWNER, |lie| {
        one(record(&[0], A, IN, 300, lie))
    }),
    lie(
        "the address of a name that only begins like the question",
        OWNER,
        |lie| {
            let longer = format!("owner3.{ZONE}.evil.org");
            one(record(&name(&longer), A, IN, 300, lie))
        },
    ),
    lie(
        "the address of a DNAME's target, without the alias that follows from it",
        OWNER,
        |lie| {
            let moved = record(&name(ZONE), DNAME, IN, 300, &name("evil.org"));
            let there = record(&name("dname.evil.org"), A, IN, 300, lie);
            message(GOOD, [1, 2, 0, 0], [moved, there].concat())
        },
    ),
    lie(
        "an alias that leads away from a name that nobody asked for",
        OWNER,
        |lie| {
            let alias = record(
                &name("other.example.org"),
                CNAME,
                IN,
                300,
                &name("far.example.org"),
            );
            let there = record(&name("far.example.org"), A, IN, 300, lie);
            message(GOOD, [1, 2, 0, 0], [alias, there].concat())
        },
    ),
    lie("an alias in the additional section", OWNER, |lie| {
        let alias = record(ASKED, CNAME, IN, 300, &name("far.example.org"));
        let there = record(&name("far.example.org"), A, IN, 300, lie);
        message(GOOD, [1, 1, 0, 1], [there, alias].concat())
    }),
    lie(
        "an alias to a name that a policy denies, with its address",
        "a denied name anywhere on the chain stops the answer",
        |lie| {
            let denied = name("denied.example.org");
            let alias = record(ASKED, CNAME, IN, 300, &denied);
            let there = record(&denied, A, IN, 300, lie);
            message(GOOD, [1, 2, 0, 0], [alias, there].concat())
        },
    ),
    lie("addresses of a wrong length", FORM, |lie| {
        let long = record(ASKED, A, IN, 300, &[lie, &[0]].concat());
        let short = record(ASKED, AAAA, IN, 300, lie);
        message(GOOD, [1, 2, 0, 0], [long, short].concat())
    }),
    lie(
        "an address in a record of another type or class",
        FORM,
        |lie| {
            let text = record(ASKED, TXT, IN, 300, lie);
            let chaos = record(ASKED, A, 3, 300, lie);
            let none = record(ASKED, A, 254, 300, lie);
            let any = record(ASKED, A, 255, 300, lie);
            message(GOOD, [1, 4, 0, 0], [text, chaos, none, any].concat())
        },
    ),
    lie(
        "an address in an option (EDNS client subnet)",
        FORM,
        |lie| {
            let subnet = [&[0, 8, 0, 8, 0, 1, 32, 32][..], lie].concat();
            message(GOOD, [1, 0, 0, 1], record(&[0], OPT, 1232, 0, &subnet))
        },
    ),
    lie(
        "owners that point forward, into the header, or behind the end",
        FORM,
        |lie| {
            let owners: [&[u8]; 3] = [&[0xc0, 0xff], &[0xc0, 0], &[0xff, 0xff]];
            one(owners.map(|owner| record(owner, A, IN, 300, lie)).concat())
        },
    ),
    lie(
        "owners of a kind that nobody uses any more (extended and bit labels)",
        FORM,
        |lie| {
            one([&[0x41, 1][..], &[0x80, 1]]
                .map(|owner| record(owner, A, IN, 300, lie))
                .concat())
        },
    ),
    lie(
        "a record whose length goes beyond the message",
        FORM,
        |lie| {
            let mut bytes = record(ASKED, TXT, IN, 300, lie);
            bytes[11] = 0xff;
            message(GOOD, [1, 2, 0, 0], [bytes, address(lie)].concat())
        },
    ),
    lie(
        "addresses of loopback, the unspecified one, groups, broadcast, and the node's own",
        UNTAUGHT,
        |_| {
            let node: std::net::Ipv4Addr = zone::NODE[0].parse().unwrap();
            let all = [
                [127, 0, 0, 1],
                [0, 0, 0, 0],
                [224, 0, 0, 1],
                [255, 255, 255, 255],
                node.octets(),
            ];
            message(GOOD, [1, 5, 0, 0], all.map(|one| address(&one)).concat())
        },
    ),
    lie(
        "IPv6 addresses of that kind, and metadata services inside NAT64 and 6to4",
        UNTAUGHT,
        |_| {
            let all = [
                "::1",
                "::",
                "ff02::1",
                "fe80::1",
                "64:ff9b::a9fe:a9fe",
                "2002:a9fe:a9fe::1",
            ];
            let record = |text: &str| {
                let address: std::net::Ipv6Addr = text.parse().unwrap();
                record(ASKED, AAAA, IN, 300, &address.octets())
            };
            message(GOOD, [1, 6, 0, 0], all.map(record).concat())
        },
    ),
];

/// Rows of the table.
pub(crate) fn techniques() -> impl Iterator<Item = Technique> {
    let of_answers = LIES.iter().map(|lie| (lie.name, lie.why));
    let of_questions = QUESTIONS
        .iter()
        .map(|question| (question.name, question.why));
    of_answers.chain(of_questions).map(|(name, why)| Technique {
        name,
        outcome: Outcome::Stopped,
        why,
    })
}

/// A question that looks like one for an allowed name, and is none. The resolver answers it honestly.
struct Question {
    name: &'static str,
    why: &'static str,
    /// The name on the wire.
    asked: fn() -> Vec<u8>,
}

const QUESTIONS: &[Question] = &[
    Question {
        name: "a question whose labels have dots in them, so that it reads like an allowed name",
        why: "`skb_ingress`: names are compared label by label, and such bytes match nothing",
        asked: || {
            let mut bytes = vec![11];
            bytes.extend(b"dots1.craft");
            bytes.extend(name("example.com"));
            bytes
        },
    },
    Question {
        name: "a question with a zero byte in a label, where a text would end",
        why: "as above",
        asked: || {
            let mut bytes = vec![6];
            bytes.extend(b"zero1\0");
            bytes.extend(name("craft.example.org"));
            bytes
        },
    },
    Question {
        name: "a question for an allowed name as the beginning of another",
        why: "as above",
        asked: || name(&format!("begin1.{ZONE}.example.org")),
    },
];

fn lie_of(place: usize) -> [u8; 4] {
    let [a, b, c, d] = FIRST;
    [a, b, c, d + place as u8]
}

/// An argument of `probe craft-dns`.
fn answer(label: &str, message: &Message) -> String {
    let mut head = message.flags.to_be_bytes().to_vec();
    head.extend(message.counts.into_iter().flat_map(u16::to_be_bytes));
    format!("{label}={},{}", to_hex(&head), to_hex(&message.rest))
}

fn bench(answers: &[String]) -> Option<Bench> {
    let rules =
        format!("allow: [{{ names: [\"*.{ZONE}\"] }}]\ndeny: [{{ names: [denied.example.org] }}]");
    let mut bench = Bench::with(&rules, World::builder(), |agent| {
        agent.resolver(zone::FORGER)
    })?;
    let mut args = vec!["craft-dns"];
    args.extend(answers.iter().map(String::as_str));
    bench.world.start_probe(Role::Dns, &args).unwrap();
    Some(bench)
}

fn ask(bench: &Bench, label: &str) {
    let name = format!("{label}.{ZONE}");
    let args = [&name, "--server", zone::FORGER, "--timeout", "150"];
    let _ = bench.client.lookup(&args);
}

/// The twin: an honest answer of the same server.
fn honest_answers_teach(bench: &Bench) {
    ask(bench, "honest");
    reached(&bench.client.connect("10.78.41.1", 80));
}

#[test]
fn what_an_answer_says_besides_teaches_nothing() {
    let mut answers: Vec<_> = LIES
        .iter()
        .enumerate()
        .map(|(place, lie)| answer(&format!("owner{place}"), &(lie.answer)(&lie_of(place))))
        .collect();
    answers.push(answer("honest", &one(address(&[10, 78, 41, 1]))));
    let Some(bench) = bench(&answers) else { return };
    for (place, lie) in LIES.iter().enumerate() {
        let (_, moved) = bench
            .agent
            .counted(|| ask(&bench, &format!("owner{place}")));
        assert_eq!(
            moved.dns("address_learned"),
            0,
            "{}: {:?}",
            lie.name,
            moved.dns
        );
    }
    // The agent reads the same bytes a little later.
    thread::sleep(Duration::from_millis(200));
    assert_eq!(bench.agent.learned(), []);
    for (place, lie) in LIES.iter().enumerate() {
        let attempt = bench.client.udp(IpAddr::from(lie_of(place)), 9000, true);
        assert!(attempt.is_refused(), "{}: {attempt:?}", lie.name);
    }
    honest_answers_teach(&bench);
}

#[test]
fn a_question_that_looks_like_an_allowed_one_teaches_nothing() {
    // A zero byte is none for an argument: the server leaves it out.
    let labels = ["dots1.craft", "zero1", "begin1"];
    let mut answers: Vec<_> = labels
        .into_iter()
        .enumerate()
        .map(|(place, label)| answer(label, &one(address(&lie_of(100 + place)))))
        .collect();
    answers.push(answer("honest", &one(address(&[10, 78, 41, 1]))));
    let Some(bench) = bench(&answers) else { return };
    for (place, question) in QUESTIONS.iter().enumerate() {
        let query = [
            &[0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..],
            &(question.asked)(),
            &[0, 1, 0, 1],
        ]
        .concat();
        let bytes = to_hex(&query);
        let args = [
            "exchange",
            zone::FORGER,
            "53",
            "--connected",
            "--bytes",
            &bytes,
        ];
        let (attempt, moved) = bench.agent.counted(|| bench.client.probe::<Attempt>(&args));
        assert_eq!(
            moved.dns("address_learned"),
            0,
            "{}: {attempt:?} {:?}",
            question.name,
            moved.dns
        );
        // It was answered, if not with an echo.
        assert_eq!(attempt.stage, "receive", "{}", question.name);
        assert!(!attempt.is_silent(), "{}: {attempt:?}", question.name);
        refused(&bench.client.connect(IpAddr::from(lie_of(100 + place)), 80));
    }
    thread::sleep(Duration::from_millis(200));
    assert_eq!(bench.agent.learned(), []);
    honest_answers_teach(&bench);
}
