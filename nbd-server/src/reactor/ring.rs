//! A thin layer over io_uring: what is in flight, and the memory that the kernel works on.
//!
//! An operation in flight owns a slot: what the caller wants to know it by, the file it is for, handles to the memory
//! it reads or fills, and the arrays that describe that memory. The slot is free again when the completion has been
//! taken; until then nothing of it is freed or moved. There are at least as many entries in both queues as there are slots, so neither can
//! overflow. Timers are no operations: [`Ring::enter`] takes how long to wait.

#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::rc::Rc;
use std::time::Duration;

use arrayvec::ArrayVec;
use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue};
use nix::errno::Errno;
use nix::libc;

use super::pool::{Filling, PoolBuffer};

/// The most pieces of memory in one operation.
pub const SEGMENTS_MAX: usize = 32;

/// A part of a buffer that is sent or written.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The memory.
    pub buffer: PoolBuffer,
    /// The first byte.
    pub start: usize,
    /// How many bytes.
    pub length: usize,
}

/// The parts of memory of one operation.
pub type Segments = ArrayVec<Segment, SEGMENTS_MAX>;

/// A file or device, and how to ask for something there.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The file.
    pub file: &'a Rc<OwnedFd>,
    /// Whether the kernel may block this thread while it takes an operation, so that another one has to hand it in.
    pub may_block: bool,
}

/// Where in a file an operation works, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriteAt {
    /// The first byte.
    pub offset: u64,
    /// Whether the bytes are on stable media when the operation has ended.
    pub durable: bool,
}

/// The end of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion<T> {
    /// What the caller knows it by.
    pub tag: T,
    /// The system call's result.
    pub result: Result<u32, Errno>,
}

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The kernel has none, or keeps it from us.
    #[error(
        "io_uring is not available ({0}): this needs Linux 6.1 or later, `sysctl kernel.io_uring_disabled` at 0, and a \
         seccomp profile that allows io_uring_setup, io_uring_enter and io_uring_register"
    )]
    Unavailable(#[source] io::Error),
    /// A part of it that is needed is missing.
    #[error("io_uring of this kernel lacks {0}: Linux 6.1 or later is needed")]
    Lacks(&'static str),
    /// It broke while it ran.
    #[error("io_uring failed: {0}")]
    Failed(#[source] io::Error),
}

/// The ring, and its operations in flight.
pub struct Ring<T> {
    uring: IoUring,
    slots: Box<[Slot<T>]>,
    free: Vec<u32>,
    modern: bool,
}

struct Slot<T> {
    generation: u32,
    tag: Option<T>,
    file: Option<Rc<OwnedFd>>,
    filled: Option<Filling>,
    held: ArrayVec<PoolBuffer, SEGMENTS_MAX>,
    vectors: [libc::iovec; SEGMENTS_MAX],
    message: libc::msghdr,
}

impl<T> Slot<T> {
    fn new() -> Self {
        let nothing = libc::iovec {
            iov_base: ptr::null_mut(),
            iov_len: 0,
        };
        Self {
            generation: 0,
            tag: None,
            file: None,
            filled: None,
            held: ArrayVec::new(),
            vectors: [nothing; SEGMENTS_MAX],
            // SAFETY: a msghdr is integers and pointers that may be null.
            message: unsafe { mem::zeroed() },
        }
    }

    fn hold(&mut self, segments: &[Segment]) -> u32 {
        self.held.clear();
        for (vector, segment) in self.vectors.iter_mut().zip(segments) {
            vector.iov_base = segment
                .buffer
                .read_pointer(segment.start, segment.length)
                .cast_mut()
                .cast();
            vector.iov_len = segment.length;
            self.held.push(segment.buffer.clone());
        }
        u32::try_from(segments.len()).expect("an operation has few segments")
    }
}

impl Target<'_> {
    fn flagged(&self, entry: squeue::Entry) -> squeue::Entry {
        if self.may_block {
            entry.flags(squeue::Flags::ASYNC)
        } else {
            entry
        }
    }
}

impl<T: Copy> Ring<T> {
    /// A ring for at most `operations` in flight. It belongs to the thread that makes it.
    ///
    /// # Errors
    /// The kernel has no io_uring, not enough of it, or refuses it.
    pub fn new(operations: u32) -> Result<Self, RingError> {
        let entries = operations.next_power_of_two();
        let modern = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize(entries * 2)
            .build(entries);
        let (uring, modern) = match modern {
            Ok(uring) => (uring, true),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let plain = IoUring::builder().setup_cqsize(entries * 2).build(entries);
                (plain.map_err(RingError::Unavailable)?, false)
            }
            Err(error) => return Err(RingError::Unavailable(error)),
        };
        if !uring.params().is_feature_ext_arg() {
            return Err(RingError::Lacks("timeouts on waiting (EXT_ARG)"));
        }
        if !uring.params().is_feature_nodrop() || !uring.params().is_feature_submit_stable() {
            return Err(RingError::Lacks("lossless completions"));
        }
        let mut probe = Probe::new();
        uring
            .submitter()
            .register_probe(&mut probe)
            .map_err(RingError::Unavailable)?;
        for (code, name) in [
            (opcode::Recv::CODE, "RECV"),
            (opcode::SendMsg::CODE, "SENDMSG"),
            (opcode::Read::CODE, "READ"),
            (opcode::Writev::CODE, "WRITEV"),
            (opcode::Fallocate::CODE, "FALLOCATE"),
            (opcode::Fsync::CODE, "FSYNC"),
            (opcode::PollAdd::CODE, "POLL_ADD"),
        ] {
            if !probe.is_supported(code) {
                return Err(RingError::Lacks(name));
            }
        }
        // The kernel's own threads, for what it can not do without waiting. By default there are few, and a disk that
        // hangs would take those that another disk needs. Where it can not be told (before Linux 5.15), few have to do.
        let _ = uring
            .submitter()
            .register_iowq_max_workers(&mut [operations, 0]);
        Ok(Self {
            uring,
            slots: (0..operations).map(|_| Slot::new()).collect(),
            free: (0..operations).rev().collect(),
            modern,
        })
    }

    /// Whether the kernel defers its work to the time when this thread waits (Linux 6.1).
    pub fn defers_work(&self) -> bool {
        self.modern
    }

    /// Operations in flight.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Waits until `file` can be read.
    pub fn poll_readable(&mut self, tag: T, file: &Rc<OwnedFd>) {
        let (slot, fd) = self.take(tag, file);
        self.push(slot, opcode::PollAdd::new(fd, libc::POLLIN as u32).build());
    }

    /// Receives at most `length` bytes to byte `start` of `buffer`; all of them, as far as the kernel manages, if
    /// `whole`. No other handle to those blocks may be looked at before the end.
    pub fn receive(
        &mut self,
        tag: T,
        file: &Rc<OwnedFd>,
        into: (PoolBuffer, usize, usize),
        whole: bool,
    ) {
        let (slot, fd) = self.take(tag, file);
        let (buffer, start, length) = into;
        let filling = buffer.fill(start, length);
        let flags = if whole { libc::MSG_WAITALL } else { 0 };
        let entry = opcode::Recv::new(fd, filling.pointer(), bytes32(length)).flags(flags);
        self.slots[slot as usize].filled = Some(filling);
        self.push(slot, entry.build());
    }

    /// Sends `segments`, in order. At most one send may be in flight on a connection.
    pub fn send(&mut self, tag: T, file: &Rc<OwnedFd>, segments: &[Segment]) {
        let (index, fd) = self.take(tag, file);
        let slot = &mut self.slots[index as usize];
        let count = slot.hold(segments);
        slot.message.msg_iov = slot.vectors.as_mut_ptr();
        slot.message.msg_iovlen = count as _;
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let entry = opcode::SendMsg::new(fd, &raw const slot.message).flags(flags as u32);
        self.push(index, entry.build());
    }

    /// Reads at most `length` bytes from byte `offset` of a file to byte `start` of `buffer`. No other handle to those
    /// blocks may be looked at before the end.
    pub fn read(
        &mut self,
        tag: T,
        target: Target<'_>,
        offset: u64,
        into: (PoolBuffer, usize, usize),
    ) {
        let (slot, fd) = self.take(tag, target.file);
        let (buffer, start, length) = into;
        let filling = buffer.fill(start, length);
        let entry = opcode::Read::new(fd, filling.pointer(), bytes32(length)).offset(offset);
        self.slots[slot as usize].filled = Some(filling);
        self.push(slot, target.flagged(entry.build()));
    }

    /// Writes `segments` to a file, one after the other.
    pub fn write(&mut self, tag: T, target: Target<'_>, at: WriteAt, segments: &[Segment]) {
        let (index, fd) = self.take(tag, target.file);
        let slot = &mut self.slots[index as usize];
        let count = slot.hold(segments);
        let flags = if at.durable { libc::RWF_DSYNC } else { 0 };
        let entry = opcode::Writev::new(fd, slot.vectors.as_ptr(), count)
            .offset(at.offset)
            .rw_flags(flags);
        self.push(index, target.flagged(entry.build()));
    }

    /// `fallocate(2)`.
    pub fn fallocate(
        &mut self,
        tag: T,
        target: Target<'_>,
        mode: i32,
        (offset, length): (u64, u64),
    ) {
        let (slot, fd) = self.take(tag, target.file);
        let entry = opcode::Fallocate::new(fd, length).offset(offset).mode(mode);
        self.push(slot, target.flagged(entry.build()));
    }

    /// `fdatasync(2)`.
    pub fn data_sync(&mut self, tag: T, target: Target<'_>) {
        let (slot, fd) = self.take(tag, target.file);
        let entry = opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC);
        self.push(slot, target.flagged(entry.build()));
    }

    fn take(&mut self, tag: T, file: &Rc<OwnedFd>) -> (u32, Fd) {
        let index = self
            .free
            .pop()
            .expect("slots for all connections and the bound of disk operations exist");
        let slot = &mut self.slots[index as usize];
        slot.tag = Some(tag);
        slot.file = Some(Rc::clone(file));
        (index, Fd(file.as_raw_fd()))
    }

    fn push(&mut self, index: u32, entry: squeue::Entry) {
        let generation = self.slots[index as usize].generation;
        let entry = entry.user_data(u64::from(generation) << 32 | u64::from(index));
        // SAFETY: everything that the entry points to is in the slot or kept by handles in the slot, which stays as it
        // is until the completion is taken; so does the file's descriptor.
        let pushed = unsafe { self.uring.submission().push(&entry) };
        pushed.expect("there are as many entries as slots");
    }

    /// Submits what was asked for, and waits for a completion, at most `timeout` long (`None`: as long as it takes).
    ///
    /// # Errors
    /// The ring is broken. What was submitted is still in flight.
    pub fn enter(&mut self, timeout: Option<Duration>) -> Result<(), RingError> {
        let spec = timeout.map(Timespec::from);
        let args = SubmitArgs::new();
        let entered = match &spec {
            Some(spec) => self
                .uring
                .submitter()
                .submit_with_args(1, &args.timespec(spec)),
            None => self.uring.submitter().submit_with_args(1, &args),
        };
        match entered.map_err(|error| (error.raw_os_error(), error)) {
            Ok(_) => Ok(()),
            // The entries that were not taken are submitted by the next call.
            Err((Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY), _)) => Ok(()),
            Err((_, error)) => Err(RingError::Failed(error)),
        }
    }

    /// Takes what has ended since, and frees its slots.
    pub fn reap(&mut self, ended: &mut Vec<Completion<T>>) {
        for entry in self.uring.completion() {
            let index = entry.user_data() as u32;
            let generation = (entry.user_data() >> 32) as u32;
            let Some(slot) = self.slots.get_mut(index as usize) else {
                continue;
            };
            if slot.generation != generation || cqueue::more(entry.flags()) {
                continue;
            }
            let Some(tag) = slot.tag.take() else { continue };
            slot.generation = slot.generation.wrapping_add(1);
            slot.file = None;
            slot.filled = None;
            slot.held.clear();
            self.free.push(index);
            let result = u32::try_from(entry.result())
                .map_err(|_| Errno::from_raw(entry.result().wrapping_neg()));
            ended.push(Completion { tag, result });
        }
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        if self.free.len() < self.slots.len() {
            // The kernel may still write to what the slots hold: it is never freed then.
            mem::forget(mem::take(&mut self.slots));
        }
    }
}

impl<T> fmt::Debug for Ring<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("slots", &self.slots.len())
            .field("free", &self.free.len())
            .field("defers_work", &self.modern)
            .finish()
    }
}

fn bytes32(length: usize) -> u32 {
    u32::try_from(length).expect("an operation moves less than 4 GiB")
}
