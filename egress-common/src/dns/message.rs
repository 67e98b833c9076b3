//! The bytes of one message, in a buffer of fixed size.

/// Longest message that the kernel parses; a power of two. Longer ones go to the agent.
pub const MESSAGE_BYTES: usize = 4096;

/// Bytes of the header (RFC 1035 section 4.1.1).
pub const HEADER_BYTES: u32 = 12;

/// One message. Every read is masked into the buffer, so that it needs no proof; callers compare with `length`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// The bytes; behind `length` they are left from earlier messages.
    pub bytes: [u8; MESSAGE_BYTES],
    /// How many of them belong to this message.
    pub length: u32,
    /// Padding, always zero.
    pub _pad: u32,
}

impl Message {
    /// Copies a message; `None` when it is longer than [`MESSAGE_BYTES`].
    #[must_use]
    pub fn from_slice(slice: &[u8]) -> Option<Self> {
        let mut bytes = [0; MESSAGE_BYTES];
        bytes.get_mut(..slice.len())?.copy_from_slice(slice);
        Some(Self {
            bytes,
            length: u32::try_from(slice.len()).ok()?,
            _pad: 0,
        })
    }

    /// The byte at `at`.
    #[inline(always)]
    #[must_use]
    #[expect(
        clippy::indexing_slicing,
        reason = "the mask keeps the index in bounds"
    )]
    pub const fn byte(&self, at: u32) -> u8 {
        self.bytes[at as usize & (MESSAGE_BYTES - 1)]
    }

    /// The eight bytes at `at`, which is a multiple of four, as a little-endian word. At the end of the buffer the bytes
    /// of `length` follow.
    #[inline(always)]
    #[must_use]
    #[expect(
        unsafe_code,
        reason = "two loads of four bytes; byte by byte they would cost four times as much in the kernel"
    )]
    pub fn word_at(&self, at: u32) -> u64 {
        let at = at as usize & (MESSAGE_BYTES - 4);
        // SAFETY: `at` is a multiple of four below MESSAGE_BYTES, so that the place is in the message.
        let low_at = unsafe { core::ptr::from_ref(self).byte_add(at) }.cast::<u32>();
        // SAFETY: four bytes are there, aligned as the message is.
        let low = unsafe { low_at.read() };
        // SAFETY: eight bytes follow the buffer.
        let high_at = unsafe { low_at.add(1) };
        // SAFETY: as for the first four.
        let high = unsafe { high_at.read() };
        u64::from(u32::from_le(high)) << 32 | u64::from(u32::from_le(low))
    }

    /// The 16-bit number at `at`.
    #[inline(always)]
    #[must_use]
    pub const fn u16_at(&self, at: u32) -> u16 {
        u16::from_be_bytes([self.byte(at), self.byte(at.wrapping_add(1))])
    }

    /// The 32-bit number at `at`.
    #[inline(always)]
    #[must_use]
    pub const fn u32_at(&self, at: u32) -> u32 {
        (self.u16_at(at) as u32) << 16 | self.u16_at(at.wrapping_add(2)) as u32
    }
}

const _: () = assert!(align_of::<Message>() == 4 && size_of::<Message>() == MESSAGE_BYTES + 8);
