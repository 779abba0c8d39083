//! `Retry-After` (RFC 9110, section 10.2.3): a number of seconds, or a date.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, header};

/// How long an answer asks to be left alone; `None` if it does not, or says it in a way that cannot be read. No time, or a
/// date that has passed, is nothing asked for: such an answer is a failure like any other.
///
/// A date is reckoned from the answer's own `Date`, where it has one: the subscriber's clock may be another than ours.
pub fn asked(headers: &HeaderMap) -> Option<Duration> {
    asked_at(headers, SystemTime::now()).filter(|wait| !wait.is_zero())
}

fn asked_at(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number that no integer holds is long enough for whatever bound there is.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::from(u32::MAX))));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    let from = headers.get(header::DATE).and_then(date).unwrap_or(now);
    Some(until.duration_since(from).unwrap_or_default())
}

fn date(value: &HeaderValue) -> Option<SystemTime> {
    httpdate::parse_http_date(value.to_str().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(retry_after: &str, date: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, HeaderValue::from_str(retry_after).unwrap());
        if let Some(date) = date {
            headers.insert(header::DATE, HeaderValue::from_str(date).unwrap());
        }
        headers
    }

    #[test]
    fn what_cannot_be_read_asks_for_nothing() {
        for text in [
            "",
            "0",
            "00",
            "-1",
            "1.5",
            "soon",
            "1 minute",
            "Wed, 32 Oct 2026 07:28:00 GMT",
            "2026-10-21T07:28:00Z",
        ] {
            assert_eq!(asked(&headers(text, None)), None, "{text:?}");
        }
        let mut bytes = HeaderMap::new();
        bytes.insert(
            header::RETRY_AFTER,
            HeaderValue::from_bytes(&[0xff, 0x31]).unwrap(),
        );
        assert_eq!((asked(&bytes), asked(&HeaderMap::new())), (None, None));
    }

    #[test]
    fn the_three_forms_of_a_date_are_read() {
        let date = Some("Sun, 06 Nov 1994 08:49:07 GMT");
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(
                asked(&headers(text, date)),
                Some(Duration::from_secs(30)),
                "{text}"
            );
        }
        for passed in ["Sun, 06 Nov 1994 08:48:00 GMT", "Sun, 06 Nov 1994 08:49:07 GMT"] {
            assert_eq!(asked(&headers(passed, date)), None, "{passed}");
        }
        assert_eq!(
            asked(&headers("Sun, 06 Nov 1994 08:49:37 GMT", None)),
            None,
            "by our clock"
        );
    }

    proptest! {
        #[test]
        fn seconds_are_seconds(seconds in 1..=u64::MAX) {
            prop_assert_eq!(asked(&headers(&seconds.to_string(), None)), Some(Duration::from_secs(seconds)));
        }

        #[test]
        fn a_date_is_reckoned_from_the_answers_own(seconds in 0u64..4_000_000_000, wait in 0u64..10_000_000, skew in 0u64..1_000_000) {
            let from = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            let until = httpdate::fmt_http_date(from + Duration::from_secs(wait));
            let here = from + Duration::from_secs(skew);
            let with_date = headers(&until, Some(&httpdate::fmt_http_date(from)));
            prop_assert_eq!(asked_at(&with_date, here), Some(Duration::from_secs(wait)));
            prop_assert_eq!(asked_at(&headers(&until, None), here), Some(Duration::from_secs(wait.saturating_sub(skew))));
        }

        #[test]
        fn no_text_is_too_much(text in "[ -~]{0,64}") {
            let _ = asked(&headers(&text, Some(&text)));
        }
    }
}
