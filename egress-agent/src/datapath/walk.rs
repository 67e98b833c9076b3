//! Reading a whole map: thousands of entries with one system call, where the kernel can.
//!
//! A [`Walk`] has a descriptor of its own, so that who reads waits for nobody
//! who writes. It reads a page at a time and keeps its place between two of them:
//! what a large map costs in memory is one page, whoever asks.
#![expect(unsafe_code, reason = "a system call")]

use std::{
    io,
    marker::PhantomData,
    os::fd::OwnedFd,
    sync::atomic::{AtomicBool, Ordering},
};

use aya::{
    Ebpf, Pod,
    maps::{Map, MapData},
};

use super::{
    bulk::{Batch, Element, call, is_missing, is_unsupported, raw},
    error::DatapathError,
};

/// Commands of include/uapi/linux/bpf.h.
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

/// Entries of a page: of the largest map, 300 KiB.
pub(super) const PAGE: usize = 1_024;

/// A bucket with more entries than this is more than a hash map makes: the page does not grow beyond.
const LARGEST_PAGE: usize = 65_536;

/// Where a batch ended, as the kernel wants it back: a bucket of a hash map.
type Token = [u64; 1];

/// A hash map that is read page by page.
pub(super) struct Walk<K, V> {
    name: &'static str,
    fd: OwnedFd,
    capacity: u32,
    /// True if the kernel has batches for it, as far as is known.
    has_batches: AtomicBool,
    entries: PhantomData<fn() -> (K, V)>,
}

/// How far a walk has come.
#[derive(Debug)]
enum Place<K> {
    Start,
    /// After this batch.
    Batch(Token),
    /// After this key, and how many keys came before it.
    Key(K, u32),
    End,
}

/// The entries of one page after another.
#[derive(Debug)]
pub struct Pages<K, V> {
    place: Place<K>,
    keys: Vec<K>,
    values: Vec<V>,
}

impl<K, V> Default for Pages<K, V> {
    fn default() -> Self {
        Self {
            place: Place::Start,
            keys: Vec::new(),
            values: Vec::new(),
        }
    }
}

impl<K: Pod, V: Pod> Walk<K, V> {
    /// Opens a map of the object, which stays there.
    pub(super) fn open(ebpf: &Ebpf, name: &'static str) -> Result<Self, DatapathError> {
        let Some(Map::HashMap(data)) = ebpf.map(name) else {
            return Err(DatapathError::Missing { what: "map", name });
        };
        Self::of(data, name)
    }

    /// Reads a hash map that somebody else holds, too.
    pub(super) fn of(data: &MapData, name: &'static str) -> Result<Self, DatapathError> {
        let info = data.info().map_err(|source| DatapathError::Map {
            action: "open",
            map: name,
            source,
        })?;
        Ok(Self {
            name,
            fd: super::bulk::own_descriptor::<K, V>(data, name)?,
            capacity: info.max_entries(),
            has_batches: AtomicBool::new(true),
            entries: PhantomData,
        })
    }

    /// Most entries that fit.
    pub(super) const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The next entries; `None` when there are no more. A page may be empty. Entries that come or go meanwhile are in
    /// it or not; all others are in exactly one page.
    pub(super) fn next<'a>(
        &self,
        pages: &'a mut Pages<K, V>,
    ) -> Result<Option<impl ExactSizeIterator<Item = (&'a K, &'a V)> + use<'a, K, V>>, DatapathError>
    {
        let read = self.read(pages).map_err(|source| DatapathError::Bulk {
            action: "read",
            map: self.name,
            source,
        })?;
        Ok(read.then(|| pages.keys.iter().zip(&pages.values)))
    }

    /// Calls `visit` for every entry.
    pub(super) fn for_each(&self, mut visit: impl FnMut(&K, &V)) -> Result<(), DatapathError> {
        let mut pages = Pages::default();
        while let Some(entries) = self.next(&mut pages)? {
            entries.for_each(|(key, value)| visit(key, value));
        }
        Ok(())
    }

    /// The value of a key, if there is one.
    pub(super) fn find(&self, key: &K) -> Result<Option<V>, DatapathError> {
        self.value_of(key).map_err(|source| DatapathError::Bulk {
            action: "read",
            map: self.name,
            source,
        })
    }

    /// How many entries there are.
    pub(super) fn count(&self) -> Result<u64, DatapathError> {
        let mut pages = Pages::default();
        let mut count = 0_u64;
        while let Some(entries) = self.next(&mut pages)? {
            count = count.saturating_add(entries.len() as u64);
        }
        Ok(count)
    }

    /// Reads a page; `false` when there is none.
    fn read(&self, pages: &mut Pages<K, V>) -> io::Result<bool> {
        pages.keys.clear();
        pages.values.clear();
        let from = match pages.place {
            Place::End => return Ok(false),
            Place::Key(key, seen) => return self.read_keys(pages, Some(key), seen),
            Place::Start => None,
            Place::Batch(token) => Some(token),
        };
        if self.has_batches.load(Ordering::Relaxed) {
            match self.read_batch(pages, from) {
                Err(error) if from.is_none() && is_unsupported(&error) => {
                    self.has_batches.store(false, Ordering::Relaxed);
                }
                read => return read.map(|()| true),
            }
        }
        self.read_keys(pages, None, 0)
    }

    /// Reads a batch (Linux 5.6).
    fn read_batch(&self, pages: &mut Pages<K, V>, from: Option<Token>) -> io::Result<()> {
        let mut room = pages.keys.capacity().max(PAGE);
        loop {
            pages.keys.reserve_exact(room);
            pages.values.reserve_exact(room);
            let mut next: Token = [0];
            let mut attr = Batch {
                in_batch: from.as_ref().map_or(0, |token| token.as_ptr() as u64),
                out_batch: next.as_mut_ptr() as u64,
                keys: pages.keys.as_mut_ptr() as u64,
                values: pages.values.as_mut_ptr() as u64,
                count: u32::try_from(room).unwrap_or(u32::MAX),
                map: raw(&self.fd),
                element_flags: 0,
                flags: 0,
            };
            // SAFETY: there is room for `room` keys and values; both tokens live.
            let result = unsafe { call(BPF_MAP_LOOKUP_BATCH, &mut attr) };
            let count = usize::try_from(attr.count).unwrap_or(0).min(room);
            pages.place = match &result {
                Ok(()) => Place::Batch(next),
                // The last one: what it has read is valid.
                Err(error) if is_missing(error) => Place::End,
                // A bucket has more than there is room for.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < LARGEST_PAGE => {
                    room = room.saturating_mul(2);
                    continue;
                }
                Err(_) => return result,
            };
            // SAFETY: the kernel has written the first `count` keys, and there is room for `room`.
            unsafe { pages.keys.set_len(count) };
            // SAFETY: likewise the values.
            unsafe { pages.values.set_len(count) };
            return Ok(());
        }
    }

    /// Reads entries one by one, after a key. Where that key is gone, the kernel begins anew: hence a bound.
    fn read_keys(&self, pages: &mut Pages<K, V>, from: Option<K>, seen: u32) -> io::Result<bool> {
        let mut last = from;
        let mut seen = seen;
        pages.place = Place::End;
        while pages.keys.len() < PAGE && seen <= self.capacity {
            let Some(key) = self.key_after(last.as_ref())? else {
                return Ok(true);
            };
            // It may have gone meanwhile.
            if let Some(value) = self.value_of(&key)? {
                pages.keys.push(key);
                pages.values.push(value);
            }
            last = Some(key);
            seen = seen.saturating_add(1);
        }
        if let Some(key) = last
            && seen <= self.capacity
        {
            pages.place = Place::Key(key, seen);
        }
        Ok(true)
    }

    fn key_after(&self, key: Option<&K>) -> io::Result<Option<K>> {
        let mut next = std::mem::MaybeUninit::<K>::zeroed();
        let mut attr = Element {
            map: raw(&self.fd),
            _pad: 0,
            key: key.map_or(0, |key| std::ptr::from_ref(key) as u64),
            value: next.as_mut_ptr() as u64,
            flags: 0,
        };
        // SAFETY: both places have the map's types.
        let result = unsafe { call(BPF_MAP_GET_NEXT_KEY, &mut attr) };
        match result {
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error),
            // SAFETY: zeroed, then written by the kernel; any bytes are a key (`Pod`).
            Ok(()) => Ok(Some(unsafe { next.assume_init() })),
        }
    }

    fn value_of(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = std::mem::MaybeUninit::<V>::zeroed();
        let mut attr = Element {
            map: raw(&self.fd),
            _pad: 0,
            key: std::ptr::from_ref(key) as u64,
            value: value.as_mut_ptr() as u64,
            flags: 0,
        };
        // SAFETY: both places have the map's types.
        let result = unsafe { call(BPF_MAP_LOOKUP_ELEM, &mut attr) };
        match result {
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error),
            // SAFETY: zeroed, then written by the kernel; any bytes are a value (`Pod`).
            Ok(()) => Ok(Some(unsafe { value.assume_init() })),
        }
    }
}
