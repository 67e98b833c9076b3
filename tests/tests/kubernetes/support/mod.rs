//! Code that these tests share.

pub(crate) mod account;
pub(crate) mod feed;
pub(crate) mod installed;
pub(crate) mod node;
pub(crate) mod policies;
