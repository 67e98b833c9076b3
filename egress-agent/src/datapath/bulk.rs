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

/// The kernel's answer for maps without batches: tries before 5.13. Not a number of the C library.
const ENOTSUPP: i32 = 524;

/// Entries for one call: a megabyte or two.
const CHUNK: usize = 4_096;

/// `union bpf_attr` for one element.
#[repr(C)]
pub(super) struct Element {
    pub(super) map: u32,
    pub(super) _pad: u32,
    pub(super) key: u64,
    pub(super) value: u64,
    pub(super) flags: u64,
}

/// `union bpf_attr` for a batch.
#[repr(C)]
pub(super) struct Batch {
    pub(super) in_batch: u64,
    pub(super) out_batch: u64,
    pub(super) keys: u64,
    pub(super) values: u64,
    /// Entries given; afterwards, those that were done.
    pub(super) count: u32,
    pub(super) map: u32,
    pub(super) element_flags: u64,
    pub(super) flags: u64,
}

/// An attribute of the commands above, which points to nothing but memory of the caller's.
pub(super) trait Attribute {}
impl Attribute for Element {}
impl Attribute for Batch {}

/// Runs a command.
///
/// # Safety
///
/// The attribute points to keys and values that outlive the call: as many as it says, of the sizes that
/// [`own_descriptor`] checked.
pub(super) unsafe fn call<A: Attribute>(command: libc::c_long, attr: &mut A) -> io::Result<()> {
    // SAFETY: the attribute is initialised, and the caller vouches for what it points to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<A>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// A descriptor of a map with these keys and values, beside the one that somebody holds.
pub(super) fn own_descriptor<K: Pod, V: Pod>(
    data: &MapData,
    name: &'static str,
) -> Result<OwnedFd, DatapathError> {
    let info = data.info().map_err(|source| DatapathError::Map {
        action: "open",
        map: name,
        source,
    })?;
    let has_size = |bytes: u32, size| usize::try_from(bytes).is_ok_and(|bytes| bytes == size);
    if !has_size(info.key_size(), size_of::<K>()) || !has_size(info.value_size(), size_of::<V>()) {
        return Err(DatapathError::Missing { what: "map", name });
    }
    let fd = data.fd().as_fd().try_clone_to_owned();
    fd.map_err(|source| DatapathError::Bulk {
        action: "open",
        map: name,
        source,
    })
}

/// A map that is written by the thousand.
pub(super) struct Bulk<K, V> {
    name: &'static str,
    fd: OwnedFd,
    /// True if the kernel has batches for it, as far as is known.
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
        Ok(Self {
            name,
            fd: own_descriptor::<K, V>(data, name)?,
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
            map: raw(&self.fd),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: there are `count` keys and, to write, as many values.
        let result = unsafe { call(command, &mut attr) };
        let done = usize::try_from(attr.count).unwrap_or(usize::MAX);
        (done, result)
    }

    fn one(&self, command: libc::c_long, key: &K, value: Option<&V>) -> io::Result<()> {
        let mut attr = Element {
            map: raw(&self.fd),
            _pad: 0,
            key: std::ptr::from_ref(key) as u64,
            value: value.map_or(0, |value| std::ptr::from_ref(value) as u64),
            flags: 0,
        };
        // SAFETY: key and value are borrowed, and of the map's types.
        unsafe { call(command, &mut attr) }
    }
}

/// The number of a descriptor.
pub(super) fn raw(fd: &OwnedFd) -> u32 {
    // A descriptor is never negative.
    u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX)
}

pub(super) fn is_missing(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}

/// True if a map has no batches: the kernel knows no such command before 5.6, and some kinds of maps learned it later.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    [Some(ENOTSUPP), Some(libc::EINVAL)].contains(&error.raw_os_error())
}
