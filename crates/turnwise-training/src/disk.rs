//! File-system calls beyond `std::fs`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::Path;

/// Returns the number of bytes that a user may still write at an existing or future path; `None` if the system does not
/// report it.
#[must_use]
pub fn free_bytes(path: &Path) -> Option<u64> {
    let there = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("."));
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    statistics(there)
}

#[cfg(unix)]
fn statistics(path: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(path).ok()?;
    // Some network file systems report no sizes.
    (disk.f_blocks > 0).then(|| disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(not(unix))]
fn statistics(_: &Path) -> Option<u64> {
    None
}

/// Exchanges the names of two directories in one step, so that each name has a directory at every moment. Returns false
/// if the file system does not support the exchange.
#[cfg(any(target_os = "linux", target_os = "macos"))]
pub(crate) fn swap(one: &Path, other: &Path) -> io::Result<bool> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;

    match renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(true),
        Err(Errno::NOSYS | Errno::INVAL | Errno::NOTSUP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
pub(crate) fn swap(_: &Path, _: &Path) -> io::Result<bool> {
    Ok(false)
}

/// Opens a file of a run directory. Rejects a link, a pipe or a device in its place, because the content would go
/// elsewhere.
pub(crate) fn open_plain(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    if let Ok(metadata) = path.symlink_metadata()
        && !metadata.is_file()
    {
        let kind = if metadata.is_symlink() { "a link" } else { "not a regular file" };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        return Err(io::Error::other(format!("`{name}` is {kind}")));
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // The flag also rejects a link that was created since the check.
        options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    }
    options.open(path)
}

/// Reads a file of a run directory, of at most `most` bytes. Rejects a pipe or a device in its place, because reading
/// it would block or never end.
///
/// # Errors
/// If the file is not a regular file, is longer, or cannot be read.
pub fn read_plain(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("it is longer than {most} bytes")));
    }
    Ok(bytes)
}
