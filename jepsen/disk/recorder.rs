//! A library for `LD_PRELOAD` that records what a process does to a folder: every write, rename and removal, and every
//! `fsync` that ended. `galoo_jepsen::disk` makes of its journal what a power cut could have left.
//!
//! It stands in front of the C library's functions and calls the system itself. Changes of the folder are made one at a
//! time, so that the journal has the order in which they happened; syncs run beside them. Which file a descriptor means is
//! asked of the system each time, so that copies of descriptors and renames need no care. Not seen are writes through
//! memory maps, io_uring and the C library's own streams: the store has none of them on files that matter.
#![allow(unsafe_code, reason = "it takes the place of C functions")]
#![allow(clippy::missing_safety_doc, reason = "as safe as the C functions whose names they have")]

#[path = "../src/disk/journal.rs"]
mod journal;

use std::{
    ffi::{CStr, OsStr, OsString, c_char, c_int, c_long, c_uint, c_void},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Component, Path, PathBuf},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use journal::{FOLDER_VARIABLE, HANG_VARIABLE, JOURNAL_VARIABLE, Kind, Record};
use libc::{iovec, mode_t, off64_t, size_t, ssize_t, syscall};

/// Paths are as long as this at most.
const PATH_BYTES_MAX: usize = 4_096;

/// Between two looks whether a disk still hangs.
const HANG_STEP: Duration = Duration::from_millis(5);
/// What a disk hangs for.
const HANGS_FOR: &str = ".sst";

struct Recorder {
    folder: PathBuf,
    hang: Option<PathBuf>,
    journal: c_int,
    /// Bytes of the journal.
    position: Mutex<u64>,
}

/// None when the process was not told what to record.
static RECORDER: LazyLock<Option<Recorder>> = LazyLock::new(|| {
    let (folder, journal) = (std::env::var_os(FOLDER_VARIABLE)?, std::env::var_os(JOURNAL_VARIABLE)?);
    let mut path = journal.into_vec();
    path.push(0);
    let flags = libc::O_CREAT | libc::O_APPEND | libc::O_WRONLY | libc::O_CLOEXEC;
    // SAFETY: the path ends with a zero.
    let journal = unsafe { syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o644) };
    assert!(journal >= 0, "the journal cannot be opened");
    // SAFETY: a descriptor of a file.
    let position = unsafe { syscall(libc::SYS_lseek, journal, 0, libc::SEEK_END) };
    let position = Mutex::new(u64::try_from(position).expect("a file's length"));
    let hang = std::env::var_os(HANG_VARIABLE).map(PathBuf::from);
    Some(Recorder { folder: folder.into(), hang, journal: journal as c_int, position })
});

impl Recorder {
    fn turn(&self) -> MutexGuard<'_, u64> {
        self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the disk takes a write to a file.
    fn wait(&self, path: &str) {
        let hangs = || self.hang.as_ref().is_some_and(|hang| hang.exists());
        while path.ends_with(HANGS_FOR) && hangs() {
            std::thread::sleep(HANG_STEP);
        }
    }

    /// Where in the folder a path is, if it is.
    fn inside(&self, path: &Path) -> Option<String> {
        Some(path.strip_prefix(&self.folder).ok()?.to_str()?.to_owned())
    }

    fn append(&self, position: &mut u64, kind: Kind, number: u64, path: String, data: Vec<u8>) {
        let bytes = Record { kind, number, path, data }.encode();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            // SAFETY: the bytes live.
            let written = unsafe { syscall(libc::SYS_write, self.journal, rest.as_ptr(), rest.len()) };
            assert!(written > 0, "the journal cannot be written");
            rest = &rest[written as usize..];
        }
        *position += bytes.len() as u64;
    }
}

/// The file that a descriptor means.
fn path_of(fd: c_int) -> Option<PathBuf> {
    let link = format!("/proc/self/fd/{fd}\0");
    let mut path = vec![0; PATH_BYTES_MAX];
    // SAFETY: the link ends with a zero, and the buffer is as long as it says.
    let bytes = unsafe { syscall(libc::SYS_readlinkat, libc::AT_FDCWD, link.as_ptr(), path.as_mut_ptr(), path.len()) };
    path.truncate(usize::try_from(bytes).ok()?);
    Some(OsString::from_vec(path).into())
}

/// An absolute path without `.` and `..`; links are not followed, the folder has none.
unsafe fn path_at(folder: c_int, path: *const c_char) -> Option<PathBuf> {
    // SAFETY: as the caller of the C function says.
    let path = Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()));
    let start = match (path.is_absolute(), folder) {
        (true, _) => PathBuf::new(),
        (false, libc::AT_FDCWD) => std::env::current_dir().ok()?,
        (false, folder) => path_of(folder)?,
    };
    let mut found = PathBuf::from("/");
    for part in start.join(path).components() {
        match part {
            Component::Normal(name) => found.push(name),
            Component::ParentDir => _ = found.pop(),
            _ => {}
        }
    }
    Some(found)
}

/// What a system call that returns 0 or more has done to the file of a descriptor is recorded, when it is in the folder.
fn on_file(
    fd: c_int,
    call: impl Fn() -> c_long,
    kind: Kind,
    what: impl Fn(c_long) -> Option<(u64, Vec<u8>)>,
) -> c_long {
    let Some(recorder) = &*RECORDER else { return call() };
    let inside = || recorder.inside(&path_of(fd)?);
    match inside() {
        None => return call(),
        Some(path) if kind == Kind::Write => recorder.wait(&path),
        Some(_) => {}
    }
    let mut position = recorder.turn();
    let path = inside();
    let done = call();
    if done >= 0
        && let Some(path) = path
        && let Some((number, data)) = what(done)
    {
        recorder.append(&mut position, kind, number, path, data);
    }
    done
}

/// What a system call has done to a name, and to a second one.
fn on_names(path: Option<PathBuf>, to: Option<PathBuf>, call: impl Fn() -> c_long, kind: Kind) -> c_int {
    let Some(recorder) = &*RECORDER else { return call() as c_int };
    let inside = |path: &Option<PathBuf>| recorder.inside(path.as_ref()?);
    let (Some(path), to) = (inside(&path), inside(&to)) else { return call() as c_int };
    let mut position = recorder.turn();
    let done = call();
    if done >= 0 {
        recorder.append(&mut position, kind, 0, path, to.unwrap_or_default().into_bytes());
    }
    done as c_int
}

unsafe fn open_at(folder: c_int, name: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: as the caller of the C function says.
    let call = || unsafe { syscall(libc::SYS_openat, folder, name, flags, mode) };
    let changes = flags & (libc::O_CREAT | libc::O_TRUNC) != 0;
    // SAFETY: as above.
    let path = if changes { unsafe { path_at(folder, name) } } else { None };
    let inside = |recorder: &Recorder| recorder.inside(path.as_ref()?);
    let Some((recorder, path)) = RECORDER.as_ref().and_then(|recorder| Some((recorder, inside(recorder)?))) else {
        return call() as c_int;
    };
    let mut position = recorder.turn();
    // SAFETY: as above.
    let existed = unsafe { syscall(libc::SYS_faccessat, folder, name, libc::F_OK) } == 0;
    let opened = call();
    if opened >= 0 {
        match (existed, flags & libc::O_TRUNC != 0) {
            (false, _) => recorder.append(&mut position, Kind::Create, 0, path, Vec::new()),
            (true, true) => recorder.append(&mut position, Kind::Resize, 0, path, Vec::new()),
            (true, false) => {}
        }
    }
    opened as c_int
}

/// Where a write at the descriptor's own place began.
fn began(fd: c_int, written: c_long) -> Option<u64> {
    // SAFETY: takes no memory.
    let place = unsafe { syscall(libc::SYS_lseek, fd, 0, libc::SEEK_CUR) };
    u64::try_from(place - written).ok()
}

unsafe fn bytes_of(from: *const c_void, count: c_long) -> Vec<u8> {
    // SAFETY: so many bytes were read from there by the system.
    unsafe { std::slice::from_raw_parts(from.cast(), count as usize) }.to_vec()
}

unsafe fn gathered(parts: *const iovec, count: c_int, bytes: c_long) -> Vec<u8> {
    // SAFETY: the system has read them.
    let parts = unsafe { std::slice::from_raw_parts(parts, count as usize) };
    let mut all = Vec::new();
    for part in parts {
        // SAFETY: as above.
        all.extend(unsafe { bytes_of(part.iov_base, part.iov_len as c_long) });
    }
    all.truncate(bytes as usize);
    all
}

unsafe fn pwrite_at(fd: c_int, from: *const c_void, count: size_t, offset: off64_t) -> ssize_t {
    // SAFETY: as the caller of the C function says.
    let call = || unsafe { syscall(libc::SYS_pwrite64, fd, from, count, offset) };
    on_file(fd, call, Kind::Write, |written| Some((offset as u64, unsafe { bytes_of(from, written) }))) as ssize_t
}

fn resize(fd: c_int, length: off64_t) -> c_int {
    // SAFETY: takes no memory.
    let call = || unsafe { syscall(libc::SYS_ftruncate, fd, length) };
    on_file(fd, call, Kind::Resize, |_| Some((length as u64, Vec::new()))) as c_int
}

/// Only what makes the file longer matters; other ways of it are not used, and refused so that nothing is missed.
fn allocate(fd: c_int, mode: c_int, offset: off64_t, length: off64_t) -> c_int {
    // SAFETY: takes no memory.
    let call = || unsafe { syscall(libc::SYS_fallocate, fd, mode, offset, length) };
    match mode {
        libc::FALLOC_FL_KEEP_SIZE => call() as c_int,
        0 => {
            let grown = |_| {
                // SAFETY: takes no memory.
                let end = unsafe { syscall(libc::SYS_lseek, fd, 0, libc::SEEK_END) };
                Some((u64::try_from(end).ok()?, Vec::new()))
            };
            on_place_kept(fd, || on_file(fd, call, Kind::Resize, grown)) as c_int
        }
        _ => refused(libc::EOPNOTSUPP) as c_int,
    }
}

/// Puts the descriptor back to where it was.
fn on_place_kept(fd: c_int, call: impl Fn() -> c_long) -> c_long {
    // SAFETY: takes no memory.
    let place = unsafe { syscall(libc::SYS_lseek, fd, 0, libc::SEEK_CUR) };
    let done = call();
    // SAFETY: as above.
    unsafe { syscall(libc::SYS_lseek, fd, place, libc::SEEK_SET) };
    done
}

fn refused(error: c_int) -> c_long {
    // SAFETY: the thread's own.
    unsafe { *libc::__errno_location() = error };
    -1
}

/// Syncs run beside writes: those that came after its begin are not in it.
fn sync(number: c_long, fd: c_int) -> c_int {
    // SAFETY: takes no memory.
    let call = || unsafe { syscall(number, fd) };
    let Some(recorder) = &*RECORDER else { return call() as c_int };
    let inside = || recorder.inside(&path_of(fd)?);
    if inside().is_none() {
        return call() as c_int;
    }
    let began = *recorder.turn();
    let done = call();
    if done >= 0 {
        let mut position = recorder.turn();
        if let Some(path) = inside() {
            recorder.append(&mut position, Kind::Sync, began, path, Vec::new());
        }
    }
    done as c_int
}

/// The C library's functions under their names.
mod c {
    use super::*;

    macro_rules! functions {
        ($($(#[$meta:meta])* fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty = $body:expr;)*) => {
            $(#[unsafe(no_mangle)] unsafe extern "C" fn $name($($argument: $type),*) -> $result {
                // SAFETY: as the caller of the C function says.
                #[allow(unused_unsafe, reason = "some take no memory")]
                unsafe { $body }
            })*
        };
    }

    // `open` has a third argument only when it makes a file; passed as any other, it is only looked at then.
    functions! {
        fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int = open_at(libc::AT_FDCWD, path, flags, mode);
        fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int = open_at(libc::AT_FDCWD, path, flags, mode);
        fn openat(at: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int = open_at(at, path, flags, mode);
        fn openat64(at: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int = open_at(at, path, flags, mode);
        fn creat(path: *const c_char, mode: mode_t) -> c_int =
            open_at(libc::AT_FDCWD, path, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, mode);
        fn write(fd: c_int, from: *const c_void, count: size_t) -> ssize_t = {
            let call = || syscall(libc::SYS_write, fd, from, count);
            on_file(fd, call, Kind::Write, |written| Some((began(fd, written)?, bytes_of(from, written)))) as ssize_t
        };
        fn writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t = {
            let call = || syscall(libc::SYS_writev, fd, parts, count);
            let what = |written| Some((began(fd, written)?, gathered(parts, count, written)));
            on_file(fd, call, Kind::Write, what) as ssize_t
        };
        fn pwrite(fd: c_int, from: *const c_void, count: size_t, offset: off64_t) -> ssize_t =
            pwrite_at(fd, from, count, offset);
        fn pwrite64(fd: c_int, from: *const c_void, count: size_t, offset: off64_t) -> ssize_t =
            pwrite_at(fd, from, count, offset);
        fn ftruncate(fd: c_int, length: off64_t) -> c_int = resize(fd, length);
        fn ftruncate64(fd: c_int, length: off64_t) -> c_int = resize(fd, length);
        fn fallocate(fd: c_int, mode: c_int, offset: off64_t, length: off64_t) -> c_int = allocate(fd, mode, offset, length);
        fn fallocate64(fd: c_int, mode: c_int, offset: off64_t, length: off64_t) -> c_int =
            allocate(fd, mode, offset, length);
        fn fsync(fd: c_int) -> c_int = sync(libc::SYS_fsync, fd);
        fn fdatasync(fd: c_int) -> c_int = sync(libc::SYS_fdatasync, fd);
        fn rename(from: *const c_char, to: *const c_char) -> c_int =
            renameat2(libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0);
        fn renameat(at: c_int, from: *const c_char, to_at: c_int, to: *const c_char) -> c_int =
            renameat2(at, from, to_at, to, 0);
        fn renameat2(at: c_int, from: *const c_char, to_at: c_int, to: *const c_char, flags: c_uint) -> c_int = {
            let call = || syscall(libc::SYS_renameat2, at, from, to_at, to, flags);
            on_names(path_at(at, from), path_at(to_at, to), call, Kind::Rename)
        };
        fn link(from: *const c_char, to: *const c_char) -> c_int = linkat(libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0);
        fn linkat(at: c_int, from: *const c_char, to_at: c_int, to: *const c_char, flags: c_int) -> c_int = {
            let call = || syscall(libc::SYS_linkat, at, from, to_at, to, flags);
            on_names(path_at(at, from), path_at(to_at, to), call, Kind::Link)
        };
        fn unlink(path: *const c_char) -> c_int = unlinkat(libc::AT_FDCWD, path, 0);
        fn rmdir(path: *const c_char) -> c_int = unlinkat(libc::AT_FDCWD, path, libc::AT_REMOVEDIR);
        fn unlinkat(at: c_int, path: *const c_char, flags: c_int) -> c_int = {
            let call = || syscall(libc::SYS_unlinkat, at, path, flags);
            on_names(path_at(at, path), None, call, Kind::Remove)
        };
        fn mkdir(path: *const c_char, mode: mode_t) -> c_int = mkdirat(libc::AT_FDCWD, path, mode);
        fn mkdirat(at: c_int, path: *const c_char, mode: mode_t) -> c_int = {
            let call = || syscall(libc::SYS_mkdirat, at, path, mode);
            on_names(path_at(at, path), None, call, Kind::MakeFolder)
        };
        // Whoever copies with these falls back to reading and writing.
        fn copy_file_range(_from: c_int, _at: *mut off64_t, _to: c_int, _to_at: *mut off64_t, _count: size_t, _flags: c_uint) -> ssize_t =
            refused(libc::ENOSYS) as ssize_t;
        fn sendfile(_to: c_int, _from: c_int, _at: *mut off64_t, _count: size_t) -> ssize_t = refused(libc::ENOSYS) as ssize_t;
        fn sendfile64(_to: c_int, _from: c_int, _at: *mut off64_t, _count: size_t) -> ssize_t = refused(libc::ENOSYS) as ssize_t;
    }
}
