//! The lock on a file that a judging writes: two programs at one file would each write it without the other's ratings.

use std::path::Path;

use instructions::lock::{Lock, Taken};

use crate::rating::{RatingError, beside};

/// Takes the lock on `out`, a file beside it.
///
/// # Errors
/// [`RatingError::InUse`] where another judging has it; [`RatingError::File`].
pub(crate) fn lock(out: &Path) -> Result<Lock, RatingError> {
    let path = beside(out, ".lock");
    match Lock::claim(&path) {
        Ok(Taken::Ours(lock)) => Ok(lock),
        Ok(Taken::Theirs(process)) => Err(RatingError::InUse { path: out.to_path_buf(), process }),
        Err(source) => Err(RatingError::File { path, source }),
    }
}
