//! Connection services: named groups of parameters in a file of the user or of the system.

use std::path::{Path, PathBuf};

use crate::secret::Secret;

use super::files::{self, Variables};
use super::{Problem, is_space, parameters};

/// Where Debian and Ubuntu have libpq look, for want of PGSYSCONFDIR.
const SYSTEM_DIRECTORY: &str = "/etc/postgresql-common";

/// A parameter's name and value.
type Setting = (String, Secret);

/// Finds a service and gives its parameters, each once: the first counts here.
///
/// The file of the user is searched first, and if it has no such service, the system's.
pub(super) fn find(
    service: &str,
    file: Option<&str>,
    var: Variables<'_>,
) -> Result<Vec<Setting>, Problem> {
    let given = file.map(PathBuf::from).or_else(|| var("PGSERVICEFILE").map(PathBuf::from));
    let files = [
        given.clone().or_else(|| files::of_user(var, ".pg_service.conf", ".pg_service.conf")),
        Some(system_directory(var).join("pg_service.conf")),
    ];
    for path in files.into_iter().flatten() {
        if given.as_ref() != Some(&path) && !path.exists() {
            continue;
        }
        if let Some(settings) = find_in(&path, service)? {
            return Ok(settings);
        }
    }
    Err("no file has a service of this name: it is looked for in servicefile or PGSERVICEFILE, by \
         default ~/.pg_service.conf, and in pg_service.conf in PGSYSCONFDIR"
        .into())
}

fn system_directory(var: Variables<'_>) -> PathBuf {
    var("PGSYSCONFDIR").map_or_else(|| PathBuf::from(SYSTEM_DIRECTORY), PathBuf::from)
}

fn find_in(path: &Path, service: &str) -> Result<Option<Vec<Setting>>, Problem> {
    let (content, _) =
        files::read(path).map_err(|error| format!("the service file cannot be read: {error}"))?;
    parse(std::str::from_utf8(&content).map_err(|_| "the service file is not UTF-8")?, service)
}

/// Reads the lines of `[service]`, each `name=value` without quotes or spaces around the `=`.
fn parse(content: &str, service: &str) -> Result<Option<Vec<Setting>>, Problem> {
    let mut found: Option<Vec<Setting>> = None;
    for (index, line) in content.lines().enumerate() {
        let line = line.trim_matches(is_space);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(header) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            let named = header.strip_prefix(service).is_some_and(|rest| rest.starts_with(']'));
            found = named.then(Vec::new);
        } else if let Some(settings) = &mut found {
            let setting = parse_line(line)
                .map_err(|problem| format!("line {} of the service file: {problem}", index + 1))?;
            if settings.iter().all(|(earlier, _)| *earlier != setting.0) {
                settings.push(setting);
            }
        }
    }
    Ok(found)
}

fn parse_line(line: &str) -> Result<Setting, Problem> {
    let (name, value) = line.split_once('=').ok_or(if line.starts_with("ldap") {
        "looking parameters up with LDAP is not supported"
    } else {
        "expected name=value"
    })?;
    if matches!(name, "service" | "servicefile") {
        return Err("a service cannot refer to another one".into());
    }
    if parameters::definition(name).is_none() {
        return Err("unknown parameter; there must be no spaces around the `=`".into());
    }
    Ok((name.to_owned(), value.into()))
}
