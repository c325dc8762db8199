//! Files in memory whose pages are huge, on hosts where those of a memfd are small.
//!
//! `shmem_enabled` speaks for the kernel's own mount of tmpfs, where memfds are. A mount of one's
//! own has its own word, unless it is `deny` (kernel: admin-guide/mm/transhuge, "Hugepages in
//! tmpfs/shmem"). It needs no place in the tree of files and lives as long as the files in it, but
//! takes CAP_SYS_ADMIN.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

/// An empty file in a mount of its own, which heeds `MADV_HUGEPAGE`.
///
/// # Errors
///
/// The kernel's: this process may not mount, or the kernel has no huge pages for tmpfs.
pub(super) fn file(name: &str) -> io::Result<OwnedFd> {
    if super::choice("shmem_enabled").contains("[deny]") {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&tmpfs, "huge", "advise")?;
    // No limit but the host's memory, as for memfds; the usual one is half of it.
    fsconfig_set_string(&tmpfs, "size", "0")?;
    fsconfig_create(&tmpfs)?;
    let harmless = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = fsmount(&tmpfs, FsMountFlags::FSMOUNT_CLOEXEC, harmless)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(&mount, name, flags, Mode::RUSR | Mode::WUSR)?;
    unlinkat(&mount, name, AtFlags::empty())?;
    Ok(file)
}
