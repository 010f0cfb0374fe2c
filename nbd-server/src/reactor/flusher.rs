//! What the kernel should know about a process that serves disks.

#![allow(unsafe_code)]

use std::io;

use nix::errno::Errno;
use nix::libc;

/// `PR_SET_IO_FLUSHER` of `prctl(2)`, Linux 5.6.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Tells the kernel that memory must not be written back to disks, ours among them, in order to give this process more
/// of it. Call it before any thread starts; they inherit it.
///
/// # Errors
/// The process lacks CAP_SYS_RESOURCE. It works without, but a machine that is short of memory may hang when the
/// export is mounted on itself.
pub fn become_io_flusher() -> io::Result<()> {
    let (on, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: this operation takes integers only.
    let result = unsafe { libc::prctl(PR_SET_IO_FLUSHER, on, unused, unused, unused) };
    Errno::result(result).map(|_| ()).map_err(io::Error::from)
}
