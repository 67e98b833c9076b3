//! Types, parsers and the decision that the kernel programs and the agent share.
#![no_std]
