//! Target `prog`: packets through `skb_egress` and `tc_egress` in the kernel, against parser and decision on the host.

use std::{
    net::IpAddr,
    sync::{MutexGuard, mpsc},
    thread,
};

use egress_common::{
    address::from_v4,
    packet::parse,
    verdict::{Hook, Reason},
};

use crate::{
    Finding, Target,
    packets::make,
    rig::{self, DENIED, OPEN, OPEN6, PORTED, PORTED6, Rig, UNKNOWN, UNKNOWN6},
    rng::Rng,
    support::tape::Tape,
};

/// A packet and who wants the answer.
type Job = (Hook, Vec<u8>, mpsc::Sender<Result<Option<Reason>, String>>);

/// The target. The rig lives in a thread of its own: maps and programs are for one at a time.
pub struct Programs {
    jobs: mpsc::Sender<Job>,
}

/// Most bytes of a packet: what the kernel takes for a test run, less its own head and tail.
const PACKET_BYTES: usize = 3000;

const CLASSES: &[&str] = &[
    "allowed v4",
    "allowed v6",
    "no rule",
    "denied network",
    "fragment",
    "malformed",
    "source routed",
    "too many headers",
    "another reason",
    "not run",
];

impl Programs {
    /// Loads the programs; `None`, with the reason printed, where that cannot be.
    pub fn new() -> Option<Self> {
        if !rig::ready() {
            return None;
        }
        let (jobs, waiting) = mpsc::channel::<Job>();
        thread::spawn(move || {
            let rig: Option<MutexGuard<'_, Rig>> = Rig::new();
            let Some(rig) = rig else { return };
            for (hook, packet, answer) in waiting {
                // The asker may have given up.
                let _ = answer.send(rig.compare(hook, &packet));
            }
        });
        Some(Self { jobs })
    }

    fn compare(&self, hook: Hook, packet: &[u8]) -> Result<Option<Reason>, Finding> {
        let (sender, answer) = mpsc::channel();
        let sent = self.jobs.send((hook, packet.to_vec(), sender));
        match sent.ok().and_then(|()| answer.recv().ok()) {
            Some(answer) => answer.map_err(Finding),
            None => Err(Finding("the programs' thread has ended".to_owned())),
        }
    }
}

/// Puts one of the policy's networks in the place of the destination.
fn aim(tape: &mut Tape<'_>, packet: &mut [u8]) {
    let v4 = tape.pick(&[OPEN, PORTED, DENIED, UNKNOWN]).octets();
    let v6 = tape.pick(&[OPEN6, PORTED6, UNKNOWN6]).octets();
    match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= 20 => packet[16..20].copy_from_slice(&v4),
        Some(6) if packet.len() >= 40 => packet[24..40].copy_from_slice(&v6),
        _ => {}
    }
}

/// Makes it a jumbogram (RFC 2675) or one whose length field says nothing.
fn jumbo(tape: &mut Tape<'_>, packet: &mut Vec<u8>) {
    if packet.first().map(|first| first >> 4) != Some(6) || packet.len() < 40 {
        if packet.len() >= 20 {
            let length = tape.pick(&[[0, 0], [0xff, 0xff]]);
            packet[2..4].copy_from_slice(&length);
        }
        packet.resize(tape.below(PACKET_BYTES - 200) + packet.len(), 0x5a);
        return;
    }
    let next = packet[6];
    packet[6] = 0;
    packet[4..6].copy_from_slice(&[0, 0]);
    let length = match tape.below(3) {
        0 => 65_536 + tape.u32() % 100_000,
        1 => tape.u32(),
        _ => (packet.len() - 40 + 8) as u32,
    };
    let mut option = vec![next, 0, 0xc2, 4];
    option.extend(length.to_be_bytes());
    packet.splice(40..40, option);
    packet.resize(tape.below(1000) + packet.len(), 0x5a);
}

impl Target for Programs {
    fn name(&self) -> &'static str {
        "prog"
    }

    fn classes(&self) -> Vec<String> {
        CLASSES.iter().map(|class| (*class).to_owned()).collect()
    }

    fn make(&self, rng: &mut Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
        let choice = rng.u64();
        let mut bytes = [0; 320];
        rng.fill(&mut bytes);
        let tape = &mut Tape::new(&bytes);
        let mut packet = if !corpus.is_empty() && choice & 3 == 0 {
            corpus[(choice >> 16) as usize % corpus.len()].clone()
        } else {
            make(tape)
        };
        let tail = &mut Tape::new(&bytes[240..]);
        if choice >> 4 & 7 != 0 {
            aim(tail, &mut packet);
        }
        if choice >> 8 & 15 == 0 {
            jumbo(tail, &mut packet);
        }
        if choice >> 12 & 3 == 0 {
            for _ in 0..1 + tail.below(4) {
                if !packet.is_empty() {
                    // Headers rather than payload.
                    let at = tail.below(packet.len().min(80));
                    packet[at] = tail.byte();
                }
            }
        }
        if choice >> 14 & 15 == 0 {
            packet.truncate(tail.below(packet.len() + 1));
        }
        packet.truncate(PACKET_BYTES);
        packet
    }

    fn check(&self, input: &[u8]) -> Result<usize, Finding> {
        let mut reason = None;
        for hook in [Hook::SkbEgress, Hook::TcEgress] {
            reason = self.compare(hook, input)?;
            if reason.is_some_and(Reason::allows) {
                passes_rightly(input, reason)?;
            }
        }
        Ok(match reason {
            None => 9,
            Some(reason) if reason.allows() => usize::from(input[0] >> 4 == 6),
            Some(Reason::NoRule) => 2,
            Some(Reason::DeniedCidr) => 3,
            Some(Reason::Fragment) => 4,
            Some(Reason::Malformed) => 5,
            Some(Reason::SourceRouted) => 6,
            Some(Reason::TooManyHeaders) => 7,
            Some(_) => 8,
        })
    }

    fn refusals(&self) -> &'static [&'static str] {
        &["malformed", "source routed", "too many headers", "other"]
    }

    fn refusal(&self, input: &[u8]) -> Option<usize> {
        match parse(input).err()? {
            Reason::Malformed => Some(0),
            Reason::SourceRouted => Some(1),
            Reason::TooManyHeaders => Some(2),
            _ => Some(3),
        }
    }
}

/// Checks that a packet that passed can be read, and goes where the policy of the rig lets somebody go.
fn passes_rightly(input: &[u8], reason: Option<Reason>) -> Result<(), Finding> {
    let packet = parse(input)
        .map_err(|refusal| Finding(format!("passed, though the host says {refusal:?}")))?;
    let to = IpAddr::from(packet.daddr).to_canonical();
    let address = match to {
        IpAddr::V4(v4) => from_v4(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    };
    let is_open = to.is_loopback()
        || reason == Some(Reason::LinkControl)
        || rig::networks()
            .iter()
            .any(|(network, bits, _)| rig::covers(network, *bits, &address));
    if is_open {
        Ok(())
    } else {
        Err(Finding(format!("{reason:?} lets a packet pass to {to}")))
    }
}
