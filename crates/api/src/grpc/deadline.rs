//! The `grpc-timeout` of a call, which becomes the deadline of its work. A
//! client that has hung up is noticed by its dropped stream, not here.

use crate::error::ApiError;
use std::time::Duration;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;

/// Digits that the protocol allows.
const MAX_DIGITS: usize = 8;

/// The transport has the same clock, and calls whatever it ends cancelled; this
/// much earlier, it is still told that the deadline passed.
const HEAD_START: Duration = Duration::from_millis(2);

/// When nobody waits any more; `None` if the client sets no deadline.
pub(super) fn deadline(metadata: &MetadataMap) -> Result<Option<Instant>, ApiError> {
    let Some(value) = metadata.get("grpc-timeout") else { return Ok(None) };
    let timeout = value.to_str().ok().and_then(parse);
    let timeout =
        timeout.ok_or_else(|| ApiError::malformed("invalid_timeout", "grpc-timeout is not a duration"))?;
    Ok(Instant::now().checked_add(timeout.saturating_sub(HEAD_START)))
}

/// The future's outcome, unless the deadline comes first.
pub(super) async fn within<F: Future>(deadline: Option<Instant>, future: F) -> Result<F::Output, ApiError> {
    match deadline {
        Some(deadline) => {
            tokio::time::timeout_at(deadline, future).await.map_err(|_| ApiError::DeadlineExceeded)
        }
        None => Ok(future.await),
    }
}

fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > MAX_DIGITS || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_and_at_most_eight_digits() {
        assert_eq!(parse("3H"), Some(Duration::from_secs(10_800)));
        assert_eq!(parse("99999999m"), Some(Duration::from_millis(99_999_999)));
        assert_eq!(parse("7n"), Some(Duration::from_nanos(7)));
        for bad in ["", "S", "1", "1s", "123456789S", "-1S", "+1S", "1é"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
