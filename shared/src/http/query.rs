//! Reading query parameters one by one, so that every broken rule is named. Parameters that a route does not know are
//! ignored: proxies and trackers add their own.

use std::{borrow::Cow, marker::PhantomData};

use axum::extract::FromRequestParts;
use http::request::Parts;
use url::form_urlencoded;

use super::{
    ApiError, FieldError,
    openapi::{Input, Operation, Parameters},
};
use crate::Invalid;

/// How many items a list shows unless asked for another number.
const DEFAULT_LIMIT: u32 = 50;
/// The most items that a list shows.
const MAX_LIMIT: u32 = 1_000;

/// The parameters of a query, which are those of `P`, and the rules broken so far.
#[derive(Debug)]
pub struct Query<P> {
    values: Vec<(String, String)>,
    errors: Vec<FieldError>,
    parameters: PhantomData<fn() -> P>,
}

impl<P: Parameters> Input for Query<P> {
    fn describe(operation: &mut Operation<'_>) {
        operation.query(P::ALL);
    }
}

impl<P: Parameters> Query<P> {
    /// Reads a query string; `None` is an empty one.
    pub fn parse(query: Option<&str>) -> Self {
        let values = form_urlencoded::parse(query.unwrap_or_default().as_bytes())
            .map(|(name, value): (Cow<'_, str>, Cow<'_, str>)| (name.into_owned(), value.into_owned()))
            .collect();
        Self {
            values,
            errors: Vec::new(),
            parameters: PhantomData,
        }
    }

    /// Takes a parameter. One given twice is refused, since either could be meant.
    pub fn optional<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, Invalid>) -> Option<T> {
        debug_assert!(
            P::ALL.iter().any(|parameter| parameter.name == name),
            "the parameter {name} is not documented"
        );
        let mut given = self.values.iter().filter(|(parameter, _)| parameter == name);
        let value = &given.next()?.1;
        let parsed = if given.next().is_some() {
            Err(Invalid::new("is given more than once"))
        } else {
            parse(value)
        };
        parsed
            .map_err(|invalid| self.errors.push(FieldError::parameter(name, invalid.rule())))
            .ok()
    }

    /// Takes `limit`: 1 to 1,000, 50 unless given.
    pub fn limit(&mut self) -> u32 {
        let limit = self.optional("limit", |text| match text.parse() {
            Ok(limit) if (1..=MAX_LIMIT).contains(&limit) => Ok(limit),
            _ => Err(Invalid::new("must be a whole number from 1 to 1000")),
        });
        limit.unwrap_or(DEFAULT_LIMIT)
    }

    /// `Ok` if no rule was broken, else the problem that names them all.
    pub fn finish(self) -> Result<(), ApiError> {
        if self.errors.is_empty() {
            Ok(())
        } else {
            Err(ApiError::invalid(self.errors))
        }
    }
}

impl<S: Sync, P: Parameters> FromRequestParts<S> for Query<P> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Ok(Self::parse(parts.uri.query()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::openapi::Parameter;

    struct Paged;

    impl Parameters for Paged {
        const ALL: &'static [Parameter] = &[
            Parameter::of::<u32>("limit", ""),
            Parameter::of::<String>("cursor", ""),
        ];
    }

    #[test]
    fn rules_are_named() {
        let mut query = Query::<Paged>::parse(Some("limit=0&cursor=a&cursor=b&x=%ff"));
        assert_eq!(query.limit(), 50);
        assert_eq!(query.optional("cursor", |text| Ok(text.to_owned())), None);
        let error = query.finish().unwrap_err();
        assert_eq!(
            error.detail(),
            "limit must be a whole number from 1 to 1000; cursor is given more than once"
        );
        let mut query = Query::<Paged>::parse(Some("limit=1000"));
        assert_eq!(query.limit(), 1_000);
        assert!(query.finish().is_ok());
    }
}
