//! The configuration that environment variables give.

use std::cell::RefCell;
use std::env::{self, VarError};

use crate::error::{Error, Result};

use super::Config;
use super::parameters::{DEFINITIONS, Parameters};

/// Variables of libpq that say where or how to connect and are not known here yet, each with the
/// values that demand nothing. To ignore one of the others changes no more than a convenience; to
/// ignore these would connect to the wrong server, or with less protection than was asked for.
const NOT_YET: &[(&str, &[&str])] = &[
    ("PGHOSTADDR", &[]),
    ("PGSERVICE", &[]),
    ("PGOPTIONS", &[]),
    ("PGREQUIREAUTH", &[]),
    ("PGCHANNELBINDING", &["disable", "prefer"]),
    ("PGGSSENCMODE", &["disable", "prefer"]),
    ("PGREQUIRESSL", &["0"]),
];

pub(super) fn from_env() -> Result<Config> {
    // A password that is not UTF-8 must not be taken for one that is not set.
    let not_unicode = RefCell::new(None);
    let config = from_vars(|name| match env::var(name) {
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

pub(super) fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Config> {
    let var = |name: &str| var(name).filter(|value| !value.is_empty());
    refuse_unsupported(var)?;
    let mut config = Config::new();
    let given = apply_database_url(&mut config, var("DATABASE_URL"))?;
    for definition in DEFINITIONS.iter().filter(|definition| !given.has(definition.name)) {
        if let Some(value) = var(definition.variable) {
            (definition.set)(&mut config, &value)
                .map_err(|problem| Error::config(problem).context(definition.variable))?;
        }
    }
    Ok(config)
}

fn refuse_unsupported(var: impl Fn(&str) -> Option<String>) -> Result<()> {
    for &(name, harmless) in NOT_YET {
        if var(name).is_some_and(|value| !harmless.contains(&value.as_str())) {
            return Err(Error::config(
                "this variable is not supported yet by this version: unset it, or build the \
                 configuration from a connection string",
            )
            .context(name));
        }
    }
    Ok(())
}

fn apply_database_url(config: &mut Config, url: Option<String>) -> Result<Parameters> {
    let Some(url) = url else { return Ok(Parameters::none()) };
    Parameters::parse(&url)
        .and_then(|given| given.apply(config).map(|()| given))
        .map_err(|problem| Error::config(problem).context("DATABASE_URL"))
}
