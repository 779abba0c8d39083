//! What went wrong in a request.

use std::{error::Error, io};

use hyper_util::client::legacy;
use shared::{FailureKind, lookup::LookupError};

use super::connector::ConnectError;

/// What went wrong in a request, and a sentence about it.
pub fn failure(error: &legacy::Error) -> (FailureKind, String) {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    let mut innermost = error.to_string();
    while let Some(error) = cause {
        if let Some(connect) = error.downcast_ref::<ConnectError>() {
            return (connect.kind(), connect.to_string());
        }
        if let Some(tls) = tls(error) {
            return (FailureKind::Tls, tls.to_string());
        }
        innermost = error.to_string();
        cause = error.source();
    }
    (FailureKind::Connect, innermost)
}

/// Whether a request failed for want of something of this process (file descriptors, threads), which says nothing of the
/// subscriber.
pub fn is_ours(error: &legacy::Error) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(connect) = error.downcast_ref::<ConnectError>() {
            return match connect {
                ConnectError::Connect(io) => is_out_of_files(io),
                ConnectError::Dns { cause, .. } => match cause {
                    LookupError::Unanswered(io) => is_out_of_files(io),
                    LookupError::NotAsked(_) => true,
                },
                ConnectError::Blocked(_) => false,
            };
        }
        cause = error.source();
    }
    false
}

/// Whether it is for want of file descriptors.
pub(super) fn is_out_of_files(error: &io::Error) -> bool {
    error
        .raw_os_error()
        .is_some_and(|code| TOO_MANY_OPEN_FILES.contains(&code))
}

/// `ENFILE` and `EMFILE`, which are these numbers on every Unix.
const TOO_MANY_OPEN_FILES: [i32; 2] = [23, 24];

/// The failure of TLS that an error is. The connector wraps it in an `io::Error`, and that in another, whose sources do
/// not show it.
fn tls<'a>(mut error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    loop {
        if let Some(tls) = error.downcast_ref() {
            return Some(tls);
        }
        error = error.downcast_ref::<io::Error>()?.get_ref()?;
    }
}

/// Whether the subscriber has not looked at the request, and says so: a stream that it refused, or one that it did not come to
/// before it closed the connection in order (RFC 9113, section 8.7). Such a request may be sent again at once.
pub fn not_processed(error: &legacy::Error) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(h2) = error.downcast_ref::<h2::Error>() {
            let reason = h2.reason();
            return h2.is_remote()
                && (h2.is_reset() && reason == Some(h2::Reason::REFUSED_STREAM)
                    || h2.is_go_away() && reason == Some(h2::Reason::NO_ERROR));
        }
        cause = error.source();
    }
    false
}
