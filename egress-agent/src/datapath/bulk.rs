//! Thousands of entries with one system call, where the kernel can.
#![expect(unsafe_code, reason = "a system call")]

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use aya::{
    Ebpf, Pod,
    maps::{Map, MapData},
};

use super::error::DatapathError;

/// Commands of include/uapi/linux/bpf.h.
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_MAP_DELETE_BATCH: libc::c_long = 27;

/// What the kernel answers for maps without batches: tries before 5.13. Not a number of the C library.
const ENOTSUPP: i32 = 524;

/// Entries for one call: a megabyte or two.
const CHUNK: usize = 4_096;

/// `union bpf_attr` for one element.
#[repr(C)]
struct Element {
    map: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr` for a batch.
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    /// Entries given; after an error, those that were done.
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// A map that is written by the thousand.
pub(super) struct Bulk<K, V> {
    name: &'static str,
    fd: OwnedFd,
    /// Whether the kernel has batches for it, as far as is known.
    has_batches: bool,
    entries: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod> Bulk<K, V> {
    /// Opens a map of the object, which stays there.
    pub(super) fn open(ebpf: &Ebpf, name: &'static str) -> Result<Self, DatapathError> {
        let data: &MapData = match ebpf.map(name) {
            Some(Map::HashMap(data) | Map::LpmTrie(data)) => data,
            _ => return Err(DatapathError::Missing { what: "map", name }),
        };
        let failed = |source| DatapathError::Map {
            action: "open",
            map: name,
            source,
        };
        let info = data.info().map_err(failed)?;
        let has_size = |bytes: u32, size| usize::try_from(bytes).is_ok_and(|bytes| bytes == size);
        if !has_size(info.key_size(), size_of::<K>())
            || !has_size(info.value_size(), size_of::<V>())
        {
            return Err(DatapathError::Missing { what: "map", name });
        }
        let fd = data.fd().as_fd().try_clone_to_owned();
        Ok(Self {
            name,
            fd: fd.map_err(|source| DatapathError::Bulk {
                action: "open",
                map: name,
                source,
            })?,
            has_batches: true,
            entries: PhantomData,
        })
    }

    /// Writes entries.
    pub(super) fn insert(
        &mut self,
        entries: impl Iterator<Item = (K, V)>,
    ) -> Result<(), DatapathError> {
        let mut entries = entries.peekable();
        while entries.peek().is_some() {
            let (keys, values): (Vec<K>, Vec<V>) = entries.by_ref().take(CHUNK).unzip();
            self.insert_chunk(&keys, &values)
                .map_err(|source| DatapathError::Bulk {
                    action: "write",
                    map: self.name,
                    source,
                })?;
        }
        Ok(())
    }

    /// Removes entries; those that are not there are left out.
    pub(super) fn remove(&mut self, keys: impl Iterator<Item = K>) -> Result<(), DatapathError> {
        let mut keys = keys.peekable();
        while keys.peek().is_some() {
            let chunk: Vec<K> = keys.by_ref().take(CHUNK).collect();
            self.remove_chunk(&chunk)
                .map_err(|source| DatapathError::Bulk {
                    action: "delete from",
                    map: self.name,
                    source,
                })?;
        }
        Ok(())
    }

    fn insert_chunk(&mut self, keys: &[K], values: &[V]) -> io::Result<()> {
        if self.has_batches {
            match self.batch(BPF_MAP_UPDATE_BATCH, keys, Some(values)) {
                (_, Ok(())) => return Ok(()),
                (_, Err(error)) => self.keep_unless_unsupported(error)?,
            }
        }
        for (key, value) in keys.iter().zip(values) {
            self.one(BPF_MAP_UPDATE_ELEM, key, Some(value))?;
        }
        Ok(())
    }

    fn remove_chunk(&mut self, keys: &[K]) -> io::Result<()> {
        let mut left = keys;
        while self.has_batches && !left.is_empty() {
            match self.batch(BPF_MAP_DELETE_BATCH, left, None) {
                (_, Ok(())) => return Ok(()),
                // It stops at the first that is missing.
                (done, Err(error)) if is_missing(&error) => {
                    left = left.get(done.saturating_add(1)..).unwrap_or_default();
                }
                (_, Err(error)) => self.keep_unless_unsupported(error)?,
            }
        }
        for key in left {
            match self.one(BPF_MAP_DELETE_ELEM, key, None) {
                Err(error) if !is_missing(&error) => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    fn keep_unless_unsupported(&mut self, error: io::Error) -> io::Result<()> {
        if error.raw_os_error() != Some(ENOTSUPP) {
            return Err(error);
        }
        self.has_batches = false;
        Ok(())
    }

    /// Runs a batch; how many entries were done, and the error that ended it.
    fn batch(
        &self,
        command: libc::c_long,
        keys: &[K],
        values: Option<&[V]>,
    ) -> (usize, io::Result<()>) {
        let Ok(count) = u32::try_from(keys.len()) else {
            return (0, Err(io::ErrorKind::InvalidInput.into()));
        };
        let mut attr = Batch {
            in_batch: 0,
            out_batch: 0,
            keys: keys.as_ptr() as u64,
            values: values.map_or(0, |values| values.as_ptr() as u64),
            count,
            map: self.raw(),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: the attribute is initialised; it names `count` keys and, to write, as many values, of the sizes that `open` checked.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command,
                std::ptr::from_mut(&mut attr),
                size_of::<Batch>(),
            )
        };
        let done = usize::try_from(attr.count).unwrap_or(usize::MAX);
        (done, outcome(result))
    }

    fn one(&self, command: libc::c_long, key: &K, value: Option<&V>) -> io::Result<()> {
        let attr = Element {
            map: self.raw(),
            _pad: 0,
            key: std::ptr::from_ref(key) as u64,
            value: value.map_or(0, |value| std::ptr::from_ref(value) as u64),
            flags: 0,
        };
        // SAFETY: the attribute is initialised; key and value are of the sizes that `open` checked.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command,
                std::ptr::from_ref(&attr),
                size_of::<Element>(),
            )
        };
        outcome(result)
    }

    fn raw(&self) -> u32 {
        // A descriptor is never negative.
        u32::try_from(self.fd.as_raw_fd()).unwrap_or(u32::MAX)
    }
}

fn outcome(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn is_missing(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}
