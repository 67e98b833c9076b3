//! TLS hellos, right and wrong ones.

/// A hello to be written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hello {
    extensions: Vec<(u16, Vec<u8>)>,
}

fn counted(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap();
    [&length.to_be_bytes()[..], bytes].concat()
}

fn server_names(names: &[&str]) -> Vec<u8> {
    let names = names
        .iter()
        .flat_map(|name| [vec![0], counted(name.as_bytes())].concat());
    counted(&names.collect::<Vec<u8>>())
}

impl Hello {
    /// One that names nothing.
    pub(crate) fn unnamed() -> Self {
        Self {
            extensions: vec![
                // Groups, versions, a made-up one (GREASE).
                (10, vec![0, 2, 0, 29]),
                (43, vec![2, 3, 4]),
                (0x3a3a, vec![]),
            ],
        }
    }

    /// One that names this.
    pub(crate) fn of(name: &str) -> Self {
        let mut hello = Self::unnamed();
        hello.extensions.insert(1, (0, server_names(&[name])));
        hello
    }

    /// With a second extension for a name.
    pub(crate) fn twice(mut self, name: &str) -> Self {
        self.extensions.push((0, server_names(&[name])));
        self
    }

    /// With a second name in the extension.
    pub(crate) fn listing(mut self, name: &str) -> Self {
        let first = &mut self.extensions[1].1;
        let one = String::from_utf8(first[5..].to_vec()).unwrap();
        *first = server_names(&[&one, name]);
        self
    }

    /// With the name behind everything else.
    pub(crate) fn name_last(mut self) -> Self {
        let name = self.extensions.remove(1);
        self.extensions.push(name);
        self
    }

    /// With an encrypted hello inside.
    pub(crate) fn encrypted(mut self) -> Self {
        self.extensions.push((0xfe0d, vec![0; 200]));
        self
    }

    /// With so many bytes more.
    pub(crate) fn padded(mut self, bytes: usize) -> Self {
        self.extensions.insert(0, (21, vec![0; bytes]));
        self
    }

    fn message(&self) -> Vec<u8> {
        let extensions = self.extensions.iter();
        let extensions: Vec<u8> = extensions
            .flat_map(|(kind, data)| [&kind.to_be_bytes()[..], &counted(data)].concat())
            .collect();
        let mut body = vec![3, 3];
        body.extend([0x11; 32]);
        body.push(32);
        body.extend([0x22; 32]);
        body.extend(counted(&[0x13, 1, 0x13, 2, 0xc0, 0x2b]));
        body.extend([1, 0]);
        body.extend(counted(&extensions));
        let [_, length @ ..] = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[1][..], &length, &body].concat()
    }

    /// In records of at most so many bytes.
    pub(crate) fn in_records(&self, bytes: usize) -> Vec<u8> {
        let message = self.message();
        let records = message.chunks(bytes);
        records
            .flat_map(|part| [&[22, 3, 1][..], &counted(part)].concat())
            .collect()
    }

    /// In as few records as can be.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.in_records(16_384)
    }
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
