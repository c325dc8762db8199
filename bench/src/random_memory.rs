//! A file in memory with random bytes: what a guest of another program has for its memory.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::SplitMix;

/// Where memory is that has a name.
const MEMORY_DIRECTORY: &str = "/dev/shm";

/// Such a file. It is gone with this value.
#[derive(Debug)]
pub struct RandomMemory {
    path: PathBuf,
    bytes: u64,
}

impl RandomMemory {
    /// Makes one.
    ///
    /// # Errors
    ///
    /// When there is no room for it.
    pub fn make(bytes: u64) -> anyhow::Result<Self> {
        let name = format!("dunlin-bench-{}", std::process::id());
        let path = Path::new(MEMORY_DIRECTORY).join(name);
        let made = Self { path, bytes };
        let file = fs::File::create(&made.path)?;
        let mut file = std::io::BufWriter::with_capacity(1 << 20, file);
        let mut random = SplitMix(7);
        for _ in 0..bytes / 8 {
            file.write_all(&random.next_u64().to_le_bytes())?;
        }
        file.flush()?;
        Ok(made)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How large it is.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for RandomMemory {
    fn drop(&mut self) {
        // Without anyone to tell.
        let _ = fs::remove_file(&self.path);
    }
}
