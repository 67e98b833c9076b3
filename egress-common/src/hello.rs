//! TLS hellos: the name (SNI) by which a connection names its destination, read from its first bytes, whatever the
//! segments and records (RFC 8446 sections 4.1.2 and 5.1, RFC 6066 section 3).
//!
//! The machine says what the next bytes are, and its driver loads or passes over them: fields by their offsets, a name in
//! one piece where it lies in one. So a hello costs a step for each of its fields, not for each of its bytes.

use crate::{event::NameEvent, verdict::Reason};

/// Longest hello that is read.
pub const HELLO_BYTES: u32 = 16_384;

/// Most bytes that leave before the name is judged: the longest hello, and the headers of its message and records.
pub const HELLO_STREAM_BYTES: u32 = HELLO_BYTES + 1024;

/// Most steps for one packet: two for an extension, two more at the border of a record.
pub const HELLO_STEPS: u32 = 256;

/// Room for a name: 253 bytes of text, and one for a final dot.
pub const SERVER_NAME_BYTES: usize = 256;

/// Longest name as it may stand in a hello.
const LONGEST_NAME: u32 = 254;

/// Bytes of a record's header.
const RECORD_HEAD: u32 = 5;
/// Content type of a record with handshake messages.
const HANDSHAKE: u8 = 22;
/// Longest plain record (RFC 8446 section 5.1).
const RECORD_BYTES: u32 = 16_384;
/// Handshake type of a client's hello.
const CLIENT_HELLO: u8 = 1;
/// Version and random, which begin a hello.
const FIXED_BYTES: u32 = 34;
/// Longest session id.
const SESSION_ID_BYTES: u32 = 32;

/// Extension types: the server's name, and an encrypted hello (RFC 9849).
const SERVER_NAME: u16 = 0;
const ENCRYPTED_HELLO: u16 = 0xfe0d;

/// Numbers of the fields, in the order of a hello.
mod field {
    /// Type and length of the handshake message.
    pub(super) const MESSAGE: u32 = 0;
    /// Length of the session id.
    pub(super) const SESSION_ID: u32 = 1;
    /// Length of the cipher suites.
    pub(super) const CIPHERS: u32 = 2;
    /// Length of the compression methods.
    pub(super) const COMPRESSION: u32 = 3;
    /// Length of the extensions.
    pub(super) const EXTENSIONS: u32 = 4;
    /// Type and length of an extension.
    pub(super) const EXTENSION: u32 = 5;
    /// Length of the list of names, type and length of the first.
    pub(super) const NAMES: u32 = 6;
    /// The name itself.
    pub(super) const NAME: u32 = 7;
    /// Nothing: the hello is read.
    pub(super) const NONE: u32 = 8;
}

/// Bytes of a field.
#[inline(always)]
const fn bytes_of(field: u32) -> u32 {
    match field {
        field::SESSION_ID | field::COMPRESSION => 1,
        field::CIPHERS | field::EXTENSIONS => 2,
        field::NAMES => 5,
        _ => 4,
    }
}

/// Of [`HelloReader::flags`]: the hello has the extension for a name.
const HAS_NAME: u32 = 1;
/// It has one for an encrypted hello.
const HAS_ENCRYPTED: u32 = 2;

/// Where in a hello the machine is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct HelloReader {
    /// The field that is read next, after `skip` bytes.
    field: u32,
    /// Bytes of it that were met.
    have: u32,
    /// Bytes to be passed over before it.
    skip: u32,
    /// Bytes left of the hello.
    left: u32,
    /// Bytes left of the record; 0: a record's header comes next.
    record_left: u32,
    /// Bytes of that header that were met.
    head_have: u32,
    /// Bytes of the extension that is read.
    extension_bytes: u32,
    /// Bytes of the name.
    pub name_bytes: u32,
    /// [`HAS_NAME`], [`HAS_ENCRYPTED`].
    flags: u32,
    /// Padding, always zero.
    _pad: u32,
    /// The bytes of the field.
    pub bytes: [u8; 16],
    /// The bytes of the record's header.
    pub head: [u8; 16],
}
const _: () = assert!(size_of::<HelloReader>() == 72);

/// Room behind each place where a part of a field may begin.
pub const FIELD_MASK: u32 = 7;

/// Instruction for the next bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// So many are passed over.
    Skip(u32),
    /// So many go behind `at` bytes into [`HelloReader::head`].
    Head {
        /// Where to.
        at: u32,
        /// How many.
        bytes: u32,
    },
    /// So many go behind `at` bytes into [`HelloReader::bytes`].
    Field {
        /// Where to.
        at: u32,
        /// How many.
        bytes: u32,
    },
    /// So many go behind `at` bytes into the name.
    Name {
        /// Where to.
        at: u32,
        /// How many.
        bytes: u32,
    },
    /// None: the hello is read.
    Done,
}

/// Result of taking bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Nothing yet.
    More,
    /// The whole name.
    Name,
    /// The hello is read, or it cannot be: for this reason. A hello without a name is one for [`Reason::NoName`].
    Refused(Reason),
}

#[inline(always)]
const fn least(one: u32, other: u32) -> u32 {
    if one < other { one } else { other }
}

impl HelloReader {
    /// The instruction for the next bytes, of `left` that are there (at least one).
    #[inline(always)]
    #[must_use]
    pub const fn piece(&self, left: u32) -> Piece {
        if self.field == field::NONE && self.skip == 0 {
            return Piece::Done;
        }
        if self.record_left == 0 {
            return Piece::Head {
                at: self.head_have,
                bytes: least(RECORD_HEAD.wrapping_sub(self.head_have), left),
            };
        }
        let left = least(left, self.record_left);
        if self.skip != 0 {
            return Piece::Skip(least(self.skip, left));
        }
        let at = self.have;
        if self.field == field::NAME {
            return Piece::Name {
                at,
                bytes: least(self.name_bytes.wrapping_sub(at), left),
            };
        }
        Piece::Field {
            at,
            bytes: least(bytes_of(self.field).wrapping_sub(at), left),
        }
    }

    /// The hello is read, and has named a destination.
    #[inline(always)]
    #[must_use]
    pub const fn is_done(&self) -> bool {
        self.field == field::NONE && self.skip == 0
    }

    /// The name was read to its end.
    #[inline(always)]
    #[must_use]
    pub const fn has_whole_name(&self) -> bool {
        self.name_bytes != 0 && self.field != field::NAME
    }

    /// The machine is at the extensions by now.
    #[inline(always)]
    #[must_use]
    pub const fn has_many_extensions(&self) -> bool {
        self.field == field::EXTENSION && self.have == 0 && self.record_left != 0
    }

    /// An encrypted hello was met.
    #[inline(always)]
    #[must_use]
    pub const fn is_encrypted(&self) -> bool {
        self.flags & HAS_ENCRYPTED != 0
    }

    /// Takes a piece that is loaded.
    #[inline(always)]
    pub const fn take(&mut self, piece: Piece) -> Taken {
        match piece {
            Piece::Done => Taken::More,
            Piece::Head { bytes, .. } => {
                self.head_have = self.head_have.wrapping_add(bytes);
                let [kind, major, minor, high, low, ..] = self.head;
                // Each byte as soon as it is met: bytes that are no header do not leave.
                if kind != HANDSHAKE
                    || self.head_have > 1 && major != 3
                    || self.head_have > 2 && minor > 4
                {
                    return Taken::Refused(Reason::NotTls);
                }
                if self.head_have < RECORD_HEAD {
                    return Taken::More;
                }
                self.head_have = 0;
                let bytes = (high as u32) << 8 | low as u32;
                if bytes == 0 || bytes > RECORD_BYTES {
                    return Taken::Refused(Reason::NotTls);
                }
                self.record_left = bytes;
                Taken::More
            }
            Piece::Skip(bytes) => {
                self.skip = self.skip.wrapping_sub(bytes);
                self.advance(bytes);
                if self.is_done() {
                    return self.end();
                }
                Taken::More
            }
            Piece::Name { bytes, .. } => {
                self.have = self.have.wrapping_add(bytes);
                self.advance(bytes);
                if self.have < self.name_bytes {
                    return Taken::More;
                }
                self.have = 0;
                match self.behind(0) {
                    Taken::More | Taken::Name => Taken::Name,
                    Taken::Refused(reason) => Taken::Refused(reason),
                }
            }
            Piece::Field { bytes, .. } => {
                self.have = self.have.wrapping_add(bytes);
                if self.field != field::MESSAGE {
                    self.left = self.left.wrapping_sub(bytes);
                }
                self.record_left = self.record_left.wrapping_sub(bytes);
                let [first, ..] = self.bytes;
                if self.field == field::MESSAGE && first != CLIENT_HELLO {
                    return Taken::Refused(Reason::NotTls);
                }
                if self.have < bytes_of(self.field) {
                    return Taken::More;
                }
                self.have = 0;
                self.met()
            }
        }
    }

    #[inline(always)]
    const fn advance(&mut self, bytes: u32) {
        self.left = self.left.wrapping_sub(bytes);
        self.record_left = self.record_left.wrapping_sub(bytes);
    }

    /// Says what comes next: so many bytes to be passed over, then a field.
    #[inline(always)]
    const fn expect(&mut self, skip: u32, field: u32) -> Taken {
        let bytes = match field {
            field::NAME => self.name_bytes,
            field::NONE => 0,
            field => bytes_of(field),
        };
        // A length has 24 bits at most: this does not wrap.
        if skip.wrapping_add(bytes) > self.left {
            return Taken::Refused(Reason::NotTls);
        }
        self.skip = skip;
        self.field = field;
        if field == field::NONE && skip == 0 {
            return self.end();
        }
        Taken::More
    }

    /// The next extension, behind the rest of this one; or the end.
    #[inline(always)]
    const fn behind(&mut self, skip: u32) -> Taken {
        if skip == self.left {
            self.expect(skip, field::NONE)
        } else {
            self.expect(skip, field::EXTENSION)
        }
    }

    #[inline(always)]
    const fn end(&self) -> Taken {
        // Another message in the same record.
        if self.record_left != 0 {
            Taken::Refused(Reason::NotTls)
        } else if self.flags & HAS_NAME == 0 {
            Taken::Refused(Reason::NoName)
        } else {
            Taken::More
        }
    }

    /// Takes the field that is whole.
    #[inline(always)]
    const fn met(&mut self) -> Taken {
        let [a, b, c, d, e, ..] = self.bytes;
        let first = a as u32;
        let pair = (a as u32) << 8 | b as u32;
        let second = (c as u32) << 8 | d as u32;
        match self.field {
            field::MESSAGE => {
                let bytes = (b as u32) << 16 | second;
                if bytes > HELLO_BYTES {
                    return Taken::Refused(Reason::HelloTooLong);
                }
                self.left = bytes;
                self.expect(FIXED_BYTES, field::SESSION_ID)
            }
            field::SESSION_ID => {
                if first > SESSION_ID_BYTES {
                    return Taken::Refused(Reason::NotTls);
                }
                self.expect(first, field::CIPHERS)
            }
            field::CIPHERS => {
                if pair == 0 || pair & 1 != 0 {
                    return Taken::Refused(Reason::NotTls);
                }
                self.expect(pair, field::COMPRESSION)
            }
            field::COMPRESSION => {
                if first == 0 {
                    return Taken::Refused(Reason::NotTls);
                }
                if first == self.left {
                    return self.expect(first, field::NONE);
                }
                self.expect(first, field::EXTENSIONS)
            }
            field::EXTENSIONS => {
                if pair != self.left {
                    return Taken::Refused(Reason::NotTls);
                }
                self.behind(0)
            }
            field::EXTENSION => {
                self.extension_bytes = second;
                if pair == SERVER_NAME as u32 {
                    // RFC 8446 section 4.2: no extension comes twice.
                    if self.flags & HAS_NAME != 0 {
                        return Taken::Refused(Reason::NotTls);
                    }
                    self.flags |= HAS_NAME;
                    if second == 0 {
                        return Taken::Refused(Reason::NoName);
                    }
                    return self.expect(0, field::NAMES);
                }
                if pair == ENCRYPTED_HELLO as u32 {
                    self.flags |= HAS_ENCRYPTED;
                }
                self.behind(second)
            }
            field::NAMES => {
                // One name of the one type that there is, and nothing behind it.
                let bytes = (d as u32) << 8 | e as u32;
                if c != 0
                    || pair.wrapping_add(2) != self.extension_bytes
                    || bytes.wrapping_add(3) != pair
                {
                    return Taken::Refused(Reason::NotTls);
                }
                if bytes == 0 || bytes > LONGEST_NAME {
                    return Taken::Refused(Reason::NoName);
                }
                self.name_bytes = bytes;
                self.expect(0, field::NAME)
            }
            _ => Taken::Refused(Reason::NotTls),
        }
    }
}

/// State of a [`Hello`]: it is being read.
pub const HELLO_READING: u32 = 0;
/// It was read, and names what [`Hello::event`] has.
pub const HELLO_READ: u32 = 1;
/// It was refused, for [`Hello::reason`].
pub const HELLO_REFUSED: u32 = 2;

/// Value of `HELLOS`: storage of a TCP socket that connected to where it has to name its destination.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// When its SYN left, nanoseconds of the monotonic clock.
    pub begun_at_ns: u64,
    /// Rule that the name was allowed by; 0 for none.
    pub rule: u64,
    /// Sequence number of the next byte.
    pub next: u32,
    /// [`HELLO_READING`], [`HELLO_READ`] or [`HELLO_REFUSED`].
    pub state: u32,
    /// A [`Reason`] as a number: why the hello, or the name in it, is refused; 0 for not.
    pub reason: u32,
    /// Sequence number of the first byte.
    pub first: u32,
    /// Rule by which a policy in audit denies the name; 0 for none.
    pub auditor: u64,
    /// The machine.
    pub reader: HelloReader,
    /// The name, and the address, ports and namespace by which the agent finds its connection.
    pub event: NameEvent,
}
const _: () = assert!(size_of::<Hello>() == 112 + size_of::<NameEvent>());

/// Reads a segment as the kernel does, on the host: `Ok(true)` when the hello is whole, whose name is in `name` then.
///
/// # Errors
///
/// The bytes are no hello that can be read, or one that names nothing.
#[cfg(not(target_arch = "bpf"))]
pub fn read_segment(
    reader: &mut HelloReader,
    name: &mut [u8; SERVER_NAME_BYTES],
    mut segment: &[u8],
) -> Result<bool, Reason> {
    for _ in 0..HELLO_STEPS {
        let left = u32::try_from(segment.len()).unwrap_or(u32::MAX);
        if left == 0 {
            return Ok(reader.is_done());
        }
        let piece = reader.piece(left);
        let (to, at, bytes): (&mut [u8], u32, u32) = match piece {
            Piece::Done => return Ok(true),
            Piece::Skip(bytes) => (&mut [], 0, bytes),
            Piece::Head { at, bytes } => (&mut reader.head, at, bytes),
            Piece::Field { at, bytes } => (&mut reader.bytes, at, bytes),
            Piece::Name { at, bytes } => (name, at, bytes),
        };
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let (from, rest) = segment.split_at_checked(bytes).ok_or(Reason::NotTls)?;
        for (slot, byte) in to.iter_mut().skip(at).zip(from) {
            *slot = *byte;
        }
        segment = rest;
        if let Taken::Refused(reason) = reader.take(piece) {
            return Err(reason);
        }
    }
    Err(if reader.has_many_extensions() {
        Reason::HelloTooLong
    } else {
        Reason::HelloSplit
    })
}
