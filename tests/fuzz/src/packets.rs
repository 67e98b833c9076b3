//! Makes packets with everything that a header can have.

use crate::support::tape::Tape;

/// Makes a packet with options, extension headers and fragments.
pub fn make(tape: &mut Tape<'_>) -> Vec<u8> {
    let proto = tape.pick(&[6, 17, 1, 58, 132, 33, 136, 47, 50, 2, 59, 6, 17]);
    let mut payload = Vec::new();
    match proto {
        6 => {
            payload.extend([1, 187, tape.byte(), tape.byte()]);
            payload.extend(tape.u32().to_be_bytes());
            payload.extend(tape.u32().to_be_bytes());
            let offset = if tape.chance(200) {
                5
            } else {
                tape.byte() & 15
            };
            payload.extend([offset << 4, tape.byte(), 1, 0, 0, 0, 0, 0]);
        }
        17 | 136 => {
            payload.extend([tape.byte(), tape.byte(), 0, 53, 0, 12, 0, 0]);
        }
        _ => payload.extend(tape.u32().to_be_bytes()),
    }
    for _ in 0..tape.below(24) {
        payload.push(tape.byte());
    }
    let mut packet = if tape.chance(128) {
        make_v4(tape, proto, &payload)
    } else {
        make_v6(tape, proto, &payload)
    };
    if tape.chance(40) {
        let end = tape.below(packet.len() + 1);
        packet.truncate(end);
    }
    packet
}

fn make_v4(tape: &mut Tape<'_>, proto: u8, payload: &[u8]) -> Vec<u8> {
    let mut options = Vec::new();
    if tape.chance(100) {
        for _ in 0..tape.below(6) {
            match tape.below(8) {
                0 => options.push(0),
                1 => options.extend([131, 7, 4, 10, 0, 0, 1]),
                2 => options.extend([137, 7, 4, 10, 0, 0, 1]),
                3 => options.extend([tape.byte(), tape.byte()]),
                4 => options.extend([148, 4, 0, 0]),
                5 => options.extend([7, 7, 4, 0, 0, 0, 0]),
                _ => options.push(1),
            }
        }
        options.truncate(40);
        while options.len() % 4 != 0 {
            options.push(if tape.chance(128) { 1 } else { 0 });
        }
    }
    let words = 5 + (options.len() / 4) as u8;
    let words = if tape.chance(6) {
        tape.byte() & 15
    } else {
        words
    };
    let mut length = (20 + options.len() + payload.len()) as u16;
    if tape.chance(16) {
        length = tape.pick(&[0, 19, 20, length - 1, length + 1, length / 2, 65_535]);
    }
    let fragment: u16 = match tape.below(8) {
        0 => 0x2000,
        1 => 0x2000 | (tape.u16() & 0x1fff),
        2 => tape.u16(),
        _ => 0x4000,
    };
    let mut packet = vec![0x40 | words, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 1]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([
        tape.byte(),
        proto,
        0,
        0,
        10,
        0,
        0,
        tape.byte(),
        192,
        0,
        2,
        tape.byte(),
    ]);
    packet.extend(&options);
    packet.extend(payload);
    packet
}

fn make_v6(tape: &mut Tape<'_>, proto: u8, payload: &[u8]) -> Vec<u8> {
    let kinds: Vec<u8> = if tape.chance(150) {
        let count = tape.below(10);
        (0..count)
            .map(|_| tape.pick(&[0, 43, 44, 51, 60]))
            .collect()
    } else {
        Vec::new()
    };
    let mut headers = Vec::new();
    for (index, kind) in kinds.iter().enumerate() {
        let next = kinds.get(index + 1).copied().unwrap_or(proto);
        match kind {
            44 => {
                let offset = if tape.chance(60) {
                    tape.u16()
                } else {
                    tape.u16() & 7
                };
                headers.extend([next, tape.byte()]);
                headers.extend(offset.to_be_bytes());
                headers.extend(tape.u32().to_be_bytes());
            }
            51 => {
                let words = if tape.chance(200) { 1 } else { tape.byte() & 3 };
                headers.extend([next, words, 0, 0]);
                headers.resize(headers.len() + 4 + 4 * usize::from(words), 7);
            }
            _ => {
                let length = if tape.chance(200) { 0 } else { tape.byte() & 3 };
                let fourth = if tape.chance(20) { tape.byte() } else { 0 };
                headers.extend([next, length, 0, fourth]);
                headers.resize(headers.len() + 4 + 8 * usize::from(length), 0);
            }
        }
    }
    let mut length = (headers.len() + payload.len()) as u16;
    if tape.chance(16) {
        length = tape.pick(&[
            0,
            1,
            4,
            8,
            length.saturating_sub(1),
            length + 1,
            length / 2,
            65_535,
        ]);
    }
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.push(kinds.first().copied().unwrap_or(proto));
    packet.push(tape.byte());
    for _ in 0..32 {
        packet.push(tape.byte());
    }
    packet.extend(&headers);
    packet.extend(payload);
    packet
}
