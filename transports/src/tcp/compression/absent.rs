//! Both sides of compression in a build that has none: nothing is packed, and nothing unpacked.

use std::io;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::{Codec, Compression};
use crate::memory::{MemoryError, MemoryMap, Run};

/// A lane's compression: there is none.
pub(in crate::tcp) enum Packing {}

impl Packing {
    pub(in crate::tcp) fn new(_: Compression, _: MemoryMap, _: u32) -> io::Result<Option<Self>> {
        Ok(None)
    }

    pub(in crate::tcp) fn room_bytes(&self) -> usize {
        match *self {}
    }

    pub(in crate::tcp) fn pack(
        &mut self,
        _: impl Iterator<Item = Run>,
        _: u32,
        _: &mut [u8],
    ) -> Result<Option<u32>, MemoryError> {
        match *self {}
    }

    pub(in crate::tcp) fn codec(&self) -> Codec {
        match *self {}
    }

    pub(in crate::tcp) fn look(&mut self, _: &TcpStream, _: Instant) {
        match *self {}
    }

    pub(in crate::tcp) fn handed(&mut self, _: u64, _: u64, _: bool) {
        match *self {}
    }

    pub(in crate::tcp) fn paused(&mut self) {
        match *self {}
    }

    pub(in crate::tcp) fn spent(&self) -> Duration {
        match *self {}
    }
}

/// What a receiving lane keeps for compressed frames: nothing.
pub(in crate::tcp) struct Unpacking;

impl Unpacking {
    pub(in crate::tcp) fn new() -> io::Result<Self> {
        Ok(Self)
    }

    pub(in crate::tcp) fn take_buffer(&mut self) -> Vec<u8> {
        Vec::new()
    }

    pub(in crate::tcp) fn give_buffer(&mut self, _: Vec<u8>) {}

    pub(in crate::tcp) fn unpack(&mut self, codec: Codec, _: u32, _: u64) -> Result<(), String> {
        Err(format!(
            "{codec} frames are not built in here, and were not offered"
        ))
    }

    pub(in crate::tcp) fn data(&self) -> &[u8] {
        &[]
    }

    pub(in crate::tcp) fn spent(&self) -> Duration {
        Duration::ZERO
    }
}
