//! Where spans go, and which: the settings that OpenTelemetry names, by its names.

use clap::Args;
use opentelemetry_sdk::trace::{Sampler, ShouldSample};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::config::SettingError;

/// Traces, by the [variables of OpenTelemetry](https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/).
#[derive(Debug, Clone, Args)]
pub struct TraceArgs {
    /// Where an OpenTelemetry collector takes traces, by OTLP over HTTP: a base, to which /v1/traces is added. Nothing is
    /// traced unless it is set.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,

    /// The same, as a whole URL.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", value_name = "URL")]
    otlp_traces_endpoint: Option<String>,

    /// Headers for the collector: name=value, with commas between, percent-encoded.
    #[arg(
        long,
        env = "OTEL_EXPORTER_OTLP_HEADERS",
        value_name = "HEADERS",
        hide_env_values = true
    )]
    otlp_headers: Option<SecretString>,

    /// What this process is called in traces.
    #[arg(long, env = "OTEL_SERVICE_NAME", value_name = "NAME")]
    otel_service_name: Option<String>,

    /// What is traced: parentbased_always_on (what the producer's trace is sampled of, and all without one),
    /// parentbased_always_off, parentbased_traceidratio, always_on, always_off or traceidratio.
    #[arg(long, env = "OTEL_TRACES_SAMPLER", value_name = "SAMPLER", default_value = "parentbased_always_on")]
    otel_traces_sampler: String,

    /// The share that the two samplers with a ratio take: 0 to 1; all, unless set.
    #[arg(long, env = "OTEL_TRACES_SAMPLER_ARG", value_name = "SHARE")]
    otel_traces_sampler_arg: Option<String>,

    /// Traces nothing, whatever else is set.
    #[arg(
        long,
        env = "OTEL_SDK_DISABLED",
        value_name = "BOOLEAN",
        default_value_t = false,
        num_args = 0..=1,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    otel_sdk_disabled: bool,
}

/// Where spans go.
#[derive(Debug)]
pub(super) struct Collector {
    pub(super) url: Url,
    pub(super) headers: Vec<(String, String)>,
}

impl Collector {
    /// Its URL, without what may be secret in it.
    pub(super) fn shown(&self) -> String {
        format!(
            "{}://{}{}",
            self.url.scheme(),
            self.url.authority().rsplit('@').next().unwrap_or_default(),
            self.url.path()
        )
    }
}

impl TraceArgs {
    /// Says what is wrong with them.
    pub fn check(&self) -> Result<(), SettingError> {
        self.collector()?;
        self.sampler()?;
        Ok(())
    }

    pub(super) fn collector(&self) -> Result<Option<Collector>, SettingError> {
        let set = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let (name, text) = match (set(&self.otlp_traces_endpoint), set(&self.otlp_endpoint)) {
            _ if self.otel_sdk_disabled => return Ok(None),
            (Some(whole), _) => ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", whole),
            (None, Some(base)) => (
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                format!("{}/v1/traces", base.trim_end_matches('/')),
            ),
            (None, None) => return Ok(None),
        };
        let wrong = || SettingError::new(name, "must be an http:// or https:// URL");
        let url = Url::parse(&text).map_err(|_| wrong())?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(wrong());
        }
        let headers = self.otlp_headers.as_ref().map(ExposeSecret::expose_secret);
        let headers = read_headers(headers.unwrap_or_default()).ok_or_else(|| {
            SettingError::new(
                "OTEL_EXPORTER_OTLP_HEADERS",
                "must be name=value, with commas between",
            )
        })?;
        Ok(Some(Collector { url, headers }))
    }

    pub(super) fn service_name(&self) -> String {
        let given = self.otel_service_name.clone().filter(|name| !name.is_empty());
        given.unwrap_or_else(|| {
            let program = std::env::current_exe().ok();
            let program = program.as_deref().and_then(|path| path.file_stem()?.to_str());
            match program {
                None | Some("triggers") => "triggers".to_owned(),
                Some(role) => format!("triggers-{role}"),
            }
        })
    }

    pub(super) fn sampler(&self) -> Result<Sampler, SettingError> {
        let ratio = || {
            let share = self.otel_traces_sampler_arg.as_deref().unwrap_or_default();
            let share: Option<f64> = if share.is_empty() { Some(1.0) } else { share.parse().ok() };
            let share = share.filter(|share| (0.0..=1.0).contains(share));
            share.map(Sampler::TraceIdRatioBased).ok_or_else(|| {
                SettingError::new("OTEL_TRACES_SAMPLER_ARG", "must be a number from 0 to 1")
            })
        };
        let by_parent = |sampler: Sampler| -> Sampler {
            let root: Box<dyn ShouldSample> = Box::new(sampler);
            Sampler::ParentBased(root)
        };
        Ok(match self.otel_traces_sampler.as_str() {
            "" | "parentbased_always_on" => by_parent(Sampler::AlwaysOn),
            "parentbased_always_off" => by_parent(Sampler::AlwaysOff),
            "parentbased_traceidratio" => by_parent(ratio()?),
            "always_on" => Sampler::AlwaysOn,
            "always_off" => Sampler::AlwaysOff,
            "traceidratio" => ratio()?,
            _ => {
                return Err(SettingError::new(
                    "OTEL_TRACES_SAMPLER",
                    "must be parentbased_always_on, parentbased_always_off, parentbased_traceidratio, always_on, always_off \
                     or traceidratio",
                ));
            }
        })
    }
}

/// `None` if it is not as the [specification](https://opentelemetry.io/docs/specs/otel/protocol/exporter/) has it.
fn read_headers(text: &str) -> Option<Vec<(String, String)>> {
    let given = text.split(',').map(str::trim).filter(|header| !header.is_empty());
    let headers = given.map(|header| {
        let (name, value) = header.split_once('=')?;
        let value = percent_encoding::percent_decode_str(value.trim()).decode_utf8().ok()?;
        let name = http::HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
        http::HeaderValue::from_str(&value).ok()?;
        Some((name.as_str().to_owned(), value.into_owned()))
    });
    headers.collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Whole {
        #[command(flatten)]
        traces: TraceArgs,
    }

    fn args(arguments: &[&str]) -> TraceArgs {
        Whole::parse_from(["role"].iter().chain(arguments)).traces
    }

    fn url(arguments: &[&str]) -> Option<String> {
        let collector = args(arguments).collector().unwrap();
        collector.map(|collector| collector.url.to_string())
    }

    #[test]
    fn a_collector_is_named() {
        assert_eq!(url(&[]), None);
        assert_eq!(url(&["--otlp-endpoint", ""]), None);
        let base = ["--otlp-endpoint", "http://collector:4318/"];
        assert_eq!(url(&base).as_deref(), Some("http://collector:4318/v1/traces"));
        let whole = [&base[..], &["--otlp-traces-endpoint", "https://u:p@x/in?k=v"]].concat();
        assert_eq!(url(&whole).as_deref(), Some("https://u:p@x/in?k=v"));
        let shown = args(&whole).collector().unwrap().unwrap().shown();
        assert_eq!(shown, "https://x/in");
        assert_eq!(url(&[&base[..], &["--otel-sdk-disabled"]].concat()), None);
        for wrong in ["collector:4318", "ftp://x", "x"] {
            assert!(args(&["--otlp-endpoint", wrong]).collector().is_err(), "{wrong}");
        }
    }

    #[test]
    fn headers_are_read() {
        let read = read_headers("Authorization=Bearer%20a=b, x = y,").unwrap();
        let read: Vec<_> = read.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(read, [("authorization", "Bearer a=b"), ("x", "y")]);
        assert!(read_headers("x").is_none());
        assert!(read_headers("x y=z").is_none());
        assert!(read_headers("x=%0a").is_none());
    }

    #[test]
    fn samplers_are_named() {
        for sampler in ["always_on", "traceidratio", "parentbased_traceidratio", ""] {
            assert!(args(&["--otel-traces-sampler", sampler]).sampler().is_ok(), "{sampler}");
        }
        assert!(args(&["--otel-traces-sampler", "sometimes"]).sampler().is_err());
        let share = |share: &'static str| {
            args(&["--otel-traces-sampler", "traceidratio", "--otel-traces-sampler-arg", share]).sampler()
        };
        assert!(share("0.25").is_ok());
        for wrong in ["2", "-1", "half", "NaN"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }
}
