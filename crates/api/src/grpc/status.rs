//! Errors as gRPC says them: a code, a sentence, and details that programs
//! read. Which code an error has is decided in one place for both doors.

use crate::error::ApiError;
use chorale_wire::inference::InvalidField;
use std::collections::HashMap;
use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

/// Whose words the reasons in `ErrorInfo` are.
const DOMAIN: &str = "chorale";

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let mut details = ErrorDetails::new();
        let message = error.to_string();
        if let (Code::InvalidArgument, Some(field)) = (code(&error), error.param()) {
            let description =
                message.strip_prefix(field).map_or(message.as_str(), |rest| rest.trim_start_matches(": "));
            details.set_bad_request(vec![FieldViolation::new(field, description)]);
        }
        if let Some(seconds) = error.retry_after_s() {
            details.set_retry_info(Some(Duration::from_secs(seconds)));
        }
        if let Some(reason) = error.body().error.code {
            details.set_error_info(reason.to_uppercase(), DOMAIN, HashMap::new());
        }
        Self::with_error_details(code(&error), message, details)
    }
}

fn code(error: &ApiError) -> Code {
    Code::from_i32(error.grpc_code() as i32)
}

impl From<InvalidField> for ApiError {
    fn from(invalid: InvalidField) -> Self {
        Self::invalid(invalid.field, invalid.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_named_once_and_by_its_path() {
        let status = Status::from(ApiError::from(InvalidField::new("sampling.top_p", "must be above 0")));
        assert_eq!(
            (status.code(), status.message()),
            (Code::InvalidArgument, "sampling.top_p: must be above 0")
        );
        let details = status.get_error_details();
        let violations = &details.bad_request().unwrap().field_violations;
        assert_eq!(
            (violations[0].field.as_str(), violations[0].description.as_str()),
            ("sampling.top_p", "must be above 0")
        );
    }

    #[test]
    fn who_may_come_back_is_told_when_and_why() {
        let error = ApiError::QueueFull { waiting_requests: 1, waiting_tokens: 2, retry_after_s: 3 };
        let status = Status::from(error);
        assert_eq!(status.code(), Code::ResourceExhausted);
        let details = status.get_error_details();
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_secs(3)));
        assert_eq!(details.error_info().unwrap().reason, "QUEUE_FULL");
    }
}
