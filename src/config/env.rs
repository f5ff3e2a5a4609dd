//! The configuration that environment variables give.

use std::cell::RefCell;
use std::env::{self, VarError};

use crate::error::{Error, Result};
use crate::secret::Secret;

use super::files::Variables;
use super::parameters::{DEFINITIONS, Parameters, definition};
use super::{Config, Misfit, SslMode};

pub(super) fn from_env() -> Result<Config> {
    // A password that is not UTF-8 must not be taken for one that is not set.
    let not_unicode = RefCell::new(None);
    let config = from_vars(&|name| match env::var(name) {
        Ok(value) => Some(value),
        Err(VarError::NotPresent) => None,
        Err(VarError::NotUnicode(_)) => {
            not_unicode.replace(Some(name.to_owned()));
            None
        }
    });
    match not_unicode.into_inner() {
        Some(name) => Err(Error::config("the value is not UTF-8").context(name)),
        None => config,
    }
}

/// What the connection string says counts first, then what the service says, then each variable.
pub(super) fn from_vars(var: Variables<'_>) -> Result<Config> {
    let var: Variables<'_> = &|name| var(name).filter(|value| !value.is_empty());
    let mut config = Config::new();
    let given = match var("DATABASE_URL").map(Secret::from) {
        Some(string) => Parameters::parse(&string),
        None => Ok(Parameters::none()),
    };
    let given = given
        .and_then(|given| given.apply(&mut config).map(|()| given))
        .map_err(|problem| Error::config(problem).context("DATABASE_URL"))?;
    let of_service = apply_service(&mut config, &given, var)?;
    apply_variables(&mut config, &given, &of_service, var)?;
    config.check_together().map_err(|misfit| misfit_error(&given, misfit))?;
    Ok(config)
}

/// Adds what the service gives that is named in the connection string, or else in PGSERVICE.
fn apply_service(
    config: &mut Config,
    given: &Parameters,
    var: Variables<'_>,
) -> Result<Vec<String>> {
    if given.has("service") {
        return given
            .apply_own_service(config, var)
            .map_err(|problem| Error::config(problem).context("DATABASE_URL"));
    }
    let Some(service) = var("PGSERVICE") else { return Ok(Vec::new()) };
    given
        .apply_service(&service, config, var)
        .map_err(|problem| Error::config(problem).context("PGSERVICE"))
}

fn apply_variables(
    config: &mut Config,
    given: &Parameters,
    of_service: &[String],
    var: Variables<'_>,
) -> Result<()> {
    let is_settled = |name: &str| given.has(name) || of_service.iter().any(|of| of == name);
    for definition in DEFINITIONS.iter().filter(|definition| !is_settled(definition.name)) {
        let Some(variable) = definition.variable else { continue };
        if let Some(value) = var(variable).map(Secret::from) {
            definition
                .apply(config, &value)
                .map_err(|problem| Error::config(problem).context(variable))?;
        }
    }
    // Older than PGSSLMODE, which counts if there are both.
    if config.sslmode.is_none() && var("PGREQUIRESSL").is_some_and(|value| value.starts_with('1')) {
        SslMode::Require
            .check()
            .map_err(|problem| Error::config(problem).context("PGREQUIRESSL"))?;
        config.sslmode = Some(SslMode::Require);
    }
    Ok(())
}

fn misfit_error(given: &Parameters, misfit: Misfit) -> Error {
    let (name, problem) = misfit;
    if given.has(name) {
        return Error::config(given.locate((name, problem))).context("DATABASE_URL");
    }
    let variable = definition(name).and_then(|definition| definition.variable);
    Error::config(problem).context(variable.unwrap_or(name))
}
