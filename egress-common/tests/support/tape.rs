//! Choices, taken from bytes.

/// Bytes that choices are taken from; zeros when they are used up, so that every tape ends.
#[derive(Debug)]
pub struct Tape<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Tape<'a> {
    /// A tape at its first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let byte = self.bytes.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        byte
    }

    /// The next two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// The next four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from(self.u16()) << 16 | u32::from(self.u16())
    }

    /// A number below `end`, which is not zero.
    pub fn below(&mut self, end: usize) -> usize {
        let choice = if end <= 256 {
            usize::from(self.byte())
        } else {
            usize::from(self.u16())
        };
        choice % end
    }

    /// True in about `per_256` of 256 cases; never on a used-up tape.
    pub fn chance(&mut self, per_256: u8) -> bool {
        self.byte() > 255 - per_256
    }

    /// One of the options.
    pub fn pick<T: Copy>(&mut self, options: &[T]) -> T {
        options[self.below(options.len())]
    }

    /// Every byte is used up.
    pub fn is_used_up(&self) -> bool {
        self.at >= self.bytes.len()
    }
}
