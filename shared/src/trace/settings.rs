//! Where spans go, and which: the settings that OpenTelemetry names, by its names.

use std::path::Path;

use clap::{ArgAction, Args};
use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::KeyValue;
use opentelemetry_sdk::{
    Resource,
    resource::TelemetryResourceDetector,
    trace::{Sampler, ShouldSample},
};
use percent_encoding::percent_decode_str;
use url::Url;
use uuid::Uuid;

use super::collector::Collector;
use crate::{Invalid, VERSION, config::SettingError, tls};

/// What is spoken to the collector.
const PROTOCOL: &str = "http/protobuf";

/// Traces, by the [variables of OpenTelemetry](https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/),
/// in as far as they are named here. An empty one is as if it were not set.
#[derive(Debug, Clone, Args)]
pub struct TraceArgs {
    /// Where an OpenTelemetry collector takes traces, by OTLP over HTTP: its base, to which /v1/traces is added. Nothing is
    /// traced unless this is set, or the whole URL.
    #[arg(
        long,
        env = "OTEL_EXPORTER_OTLP_ENDPOINT",
        value_name = "URL",
        hide_env_values = true
    )]
    pub otel_exporter_otlp_endpoint: Option<String>,

    /// The same as a whole URL, which is used as it is.
    #[arg(
        long,
        env = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        value_name = "URL",
        hide_env_values = true
    )]
    pub otel_exporter_otlp_traces_endpoint: Option<String>,

    /// Headers for the collector: name=value, with commas between, values percent-encoded.
    #[arg(
        long,
        env = "OTEL_EXPORTER_OTLP_HEADERS",
        value_name = "HEADERS",
        hide_env_values = true
    )]
    pub otel_exporter_otlp_headers: Option<String>,

    /// What is spoken to the collector: http/protobuf, and nothing else.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_PROTOCOL", value_name = "PROTOCOL")]
    pub otel_exporter_otlp_protocol: Option<String>,

    /// A PEM file of certificate authorities that the collector is trusted under, beside the public ones.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_CERTIFICATE", value_name = "FILE")]
    pub otel_exporter_otlp_certificate: Option<String>,

    /// What this process is called in traces: triggers, or triggers-ingest, triggers-worker, triggers-api unless set.
    #[arg(long, env = "OTEL_SERVICE_NAME", value_name = "NAME")]
    pub otel_service_name: Option<String>,

    /// What else is said of this process in traces: name=value, with commas between, values percent-encoded.
    #[arg(long, env = "OTEL_RESOURCE_ATTRIBUTES", value_name = "ATTRIBUTES")]
    pub otel_resource_attributes: Option<String>,

    /// What is traced: `parentbased_always_on` (what the producer has sampled, and all that comes without a trace),
    /// `parentbased_always_off`, `parentbased_traceidratio`, `always_on`, `always_off` or `traceidratio`.
    #[arg(
        long,
        env = "OTEL_TRACES_SAMPLER",
        value_name = "SAMPLER",
        default_value = "parentbased_always_on"
    )]
    pub otel_traces_sampler: String,

    /// The share that the two samplers with a ratio take: 0 to 1; all unless set.
    #[arg(long, env = "OTEL_TRACES_SAMPLER_ARG", value_name = "SHARE")]
    pub otel_traces_sampler_arg: Option<String>,

    /// Whether nothing is traced, whatever else is set.
    #[arg(long, env = "OTEL_SDK_DISABLED", default_value = "false", value_name = "BOOL",
          action = ArgAction::Set, value_parser = parse_bool)]
    pub otel_sdk_disabled: bool,
}

impl TraceArgs {
    /// Says what is wrong with them.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.collector()?.is_some() {
            self.sampler()?;
            self.resource()?;
        }
        Ok(())
    }

    /// Where spans go, if anywhere.
    pub(super) fn collector(&self) -> anyhow::Result<Option<Collector>> {
        if self.otel_sdk_disabled {
            return Ok(None);
        }
        let Some(url) = self.url()? else {
            return Ok(None);
        };
        if given(self.otel_exporter_otlp_protocol.as_ref()).is_some_and(|protocol| protocol != PROTOCOL) {
            let rule = format!("must be {PROTOCOL}: no other is spoken here");
            return Err(SettingError::new("OTEL_EXPORTER_OTLP_PROTOCOL", rule).into());
        }
        let authorities = given(self.otel_exporter_otlp_certificate.as_ref()).map(Path::new);
        let tls = tls::client("OTEL_EXPORTER_OTLP_CERTIFICATE", authorities)?;
        Ok(Some(Collector::new(url, self.headers()?, tls)))
    }

    fn url(&self) -> Result<Option<http::Uri>, SettingError> {
        let whole = given(self.otel_exporter_otlp_traces_endpoint.as_ref());
        let base = given(self.otel_exporter_otlp_endpoint.as_ref());
        let (name, text) = match (whole, base) {
            (Some(whole), _) => ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", whole),
            (None, Some(base)) => ("OTEL_EXPORTER_OTLP_ENDPOINT", base),
            (None, None) => return Ok(None),
        };
        let wrong = || SettingError::new(name, "must be an http:// or https:// URL");
        let mut url = Url::parse(text).map_err(|_| wrong())?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(wrong());
        }
        if !url.username().is_empty() || url.password().is_some() {
            let rule = "must hold no user or password: set OTEL_EXPORTER_OTLP_HEADERS to authorization=…";
            return Err(SettingError::new(name, rule));
        }
        if whole.is_none() {
            let path = format!("{}/v1/traces", url.path().trim_end_matches('/'));
            url.set_path(&path);
        }
        url.set_fragment(None);
        url.as_str().parse().map(Some).map_err(|_| wrong())
    }

    fn headers(&self) -> Result<HeaderMap, SettingError> {
        let wrong = || {
            SettingError::new(
                "OTEL_EXPORTER_OTLP_HEADERS",
                "must be name=value, with commas between",
            )
        };
        let text = self.otel_exporter_otlp_headers.as_deref().unwrap_or_default();
        let mut headers = HeaderMap::new();
        for (name, value) in pairs(text).ok_or_else(wrong)? {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
            let mut value = HeaderValue::from_str(&value).map_err(|_| wrong())?;
            value.set_sensitive(true);
            headers.append(name, value);
        }
        Ok(headers)
    }

    /// What is said of this process.
    pub(super) fn resource(&self) -> Result<Resource, SettingError> {
        let text = self.otel_resource_attributes.as_deref().unwrap_or_default();
        let given_attributes = pairs(text).ok_or_else(|| {
            let rule = "must be name=value, with commas between";
            SettingError::new("OTEL_RESOURCE_ATTRIBUTES", rule)
        })?;
        let given_attributes = given_attributes
            .into_iter()
            .map(|(name, value)| KeyValue::new(name, value));
        let mut resource = Resource::builder_empty()
            .with_detector(Box::new(TelemetryResourceDetector))
            .with_service_name(service_name())
            .with_attribute(KeyValue::new("service.version", VERSION))
            .with_attribute(KeyValue::new("service.instance.id", Uuid::new_v4().to_string()))
            .with_attributes(given_attributes);
        if let Some(name) = given(self.otel_service_name.as_ref()) {
            resource = resource.with_service_name(name.to_owned());
        }
        Ok(resource.build())
    }

    /// What is traced.
    pub(super) fn sampler(&self) -> Result<Sampler, SettingError> {
        let share = || {
            let share = given(self.otel_traces_sampler_arg.as_ref()).unwrap_or("1");
            let share: Option<f64> = share.parse().ok();
            let share = share.filter(|share| (0.0..=1.0).contains(share));
            share
                .map(Sampler::TraceIdRatioBased)
                .ok_or_else(|| SettingError::new("OTEL_TRACES_SAMPLER_ARG", "must be a number from 0 to 1"))
        };
        let by_parent = |sampler: Sampler| {
            let root: Box<dyn ShouldSample> = Box::new(sampler);
            Sampler::ParentBased(root)
        };
        Ok(match self.otel_traces_sampler.as_str() {
            "" | "parentbased_always_on" => by_parent(Sampler::AlwaysOn),
            "parentbased_always_off" => by_parent(Sampler::AlwaysOff),
            "parentbased_traceidratio" => by_parent(share()?),
            "always_on" => Sampler::AlwaysOn,
            "always_off" => Sampler::AlwaysOff,
            "traceidratio" => share()?,
            _ => {
                return Err(SettingError::new(
                    "OTEL_TRACES_SAMPLER",
                    "must be parentbased_always_on, parentbased_always_off, parentbased_traceidratio, always_on, \
                     always_off or traceidratio",
                ));
            }
        })
    }
}

fn given(text: Option<&String>) -> Option<&str> {
    text.map(|text| text.trim()).filter(|text| !text.is_empty())
}

/// The program's, as one of ours.
fn service_name() -> String {
    let program = std::env::current_exe().ok();
    let program = program.as_deref().and_then(|path| path.file_stem()?.to_str());
    match program {
        None | Some("triggers") => "triggers".to_owned(),
        Some(role) => format!("triggers-{role}"),
    }
}

/// `name=value`, with commas between, percent-encoded; `None` if it is something else.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let given = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let pairs = given.map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
        let name = Some(name.trim()).filter(|name| !name.is_empty())?;
        Some((name.to_owned(), value.into_owned()))
    });
    pairs.collect()
}

fn parse_bool(text: &str) -> Result<bool, Invalid> {
    match text.to_ascii_lowercase().as_str() {
        "" | "false" => Ok(false),
        "true" => Ok(true),
        _ => Err(Invalid::new("must be true or false")),
    }
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

    fn wrong(arguments: &[&str]) -> String {
        let base = ["--otel-exporter-otlp-endpoint", "http://x"];
        let checked = args(&[&base, arguments].concat()).check();
        checked.map_err(|error| error.to_string()).unwrap_err()
    }

    fn url(arguments: &[&str]) -> Option<String> {
        args(arguments).url().unwrap().map(|url| url.to_string())
    }

    #[test]
    fn a_collector_is_named() {
        const BASE: &str = "--otel-exporter-otlp-endpoint";
        const WHOLE: &str = "--otel-exporter-otlp-traces-endpoint";
        assert_eq!(url(&[]), None);
        assert_eq!(url(&[BASE, ""]), None);
        for (base, whole) in [
            ("http://collector:4318", "http://collector:4318/v1/traces"),
            ("http://collector:4318/", "http://collector:4318/v1/traces"),
            (
                "https://[::1]/otlp/?token=a",
                "https://[::1]/otlp/v1/traces?token=a",
            ),
        ] {
            assert_eq!(url(&[BASE, base]).as_deref(), Some(whole));
        }
        let both = [BASE, "http://x", WHOLE, "https://y/in?token=a"];
        assert_eq!(url(&both).as_deref(), Some("https://y/in?token=a"));
        let shown = args(&both).collector().unwrap().unwrap().shown();
        assert_eq!(shown, "https://y/in");
        let disabled = [&both[..], &["--otel-sdk-disabled", "TRUE"]].concat();
        assert!(args(&disabled).collector().unwrap().is_none());
        for not_one in ["collector:4318", "ftp://x", "x", "http://u:p@x"] {
            let error = wrong(&[WHOLE, not_one]);
            assert!(
                error.starts_with("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
                "{not_one}: {error}"
            );
        }
    }

    #[test]
    fn wrong_settings_are_named() {
        for (flag, value) in [
            ("--otel-exporter-otlp-headers", "x"),
            ("--otel-exporter-otlp-headers", "x y=z"),
            ("--otel-exporter-otlp-headers", "x=%0a"),
            ("--otel-exporter-otlp-protocol", "grpc"),
            ("--otel-exporter-otlp-certificate", "/nowhere/ca.pem"),
            ("--otel-resource-attributes", "a"),
            ("--otel-resource-attributes", "=a"),
            ("--otel-traces-sampler", "sometimes"),
        ] {
            let name = flag.trim_start_matches('-').replace('-', "_").to_uppercase();
            let error = wrong(&[flag, value]);
            assert!(error.starts_with(&name), "{value}: {error}");
        }
        for share in ["2", "-0.1", "half", "NaN"] {
            let share = format!("--otel-traces-sampler-arg={share}");
            let error = wrong(&["--otel-traces-sampler", "traceidratio", &share]);
            assert!(error.starts_with("OTEL_TRACES_SAMPLER_ARG"), "{share}: {error}");
        }
        // Nobody is kept from starting by what is not in use.
        assert!(args(&["--otel-traces-sampler", "sometimes"]).check().is_ok());
    }

    #[test]
    fn headers_are_read() {
        let args = args(&[
            "--otel-exporter-otlp-headers",
            "Authorization=Bearer%20a=b, x = y,",
        ]);
        let headers = args.headers().unwrap();
        assert_eq!(headers["authorization"], "Bearer a=b");
        assert_eq!(headers["x"], "y");
        assert_eq!(headers.len(), 2);
        assert!(!format!("{headers:?}").contains("Bearer"));
    }

    #[test]
    fn a_process_has_a_name() {
        let name = |arguments: &[&str]| {
            let resource = args(arguments).resource().unwrap();
            let name = resource.get(&opentelemetry::Key::from_static_str("service.name"));
            name.unwrap().to_string()
        };
        assert!(name(&[]).starts_with("triggers"));
        let attributes = ["--otel-resource-attributes", "service.name=a%20b,x=y"];
        assert_eq!(name(&attributes), "a b");
        let both = [&attributes[..], &["--otel-service-name", "c"]].concat();
        assert_eq!(name(&both), "c");
    }

    #[test]
    fn samplers_are_named() {
        let sampler = |arguments: &[&str]| format!("{:?}", args(arguments).sampler().unwrap());
        assert_eq!(sampler(&[]), "ParentBased(AlwaysOn)");
        assert_eq!(sampler(&["--otel-traces-sampler", ""]), "ParentBased(AlwaysOn)");
        assert_eq!(sampler(&["--otel-traces-sampler", "always_off"]), "AlwaysOff");
        let ratio = ["--otel-traces-sampler", "parentbased_traceidratio"];
        assert_eq!(sampler(&ratio), "ParentBased(TraceIdRatioBased(1.0))");
        let quarter = [&ratio[..], &["--otel-traces-sampler-arg", "0.25"]].concat();
        assert_eq!(sampler(&quarter), "ParentBased(TraceIdRatioBased(0.25))");
    }
}
