//! Completions and manual pages, from the definition of the command line.

use std::fs;
use std::path::Path;

use clap_complete::Shell;
use clap_mangen::Man;

use crate::args;
use crate::exit::Failure;
use crate::output;

pub(crate) fn completions(shell: Shell) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut args::definition(), "pglock", &mut script);
    print(&script)
}

/// The page of the command itself; or, to a directory, those of the subcommands too.
pub(crate) fn manual(directory: Option<&Path>) -> Result<u8, Failure> {
    let Some(directory) = directory else {
        let mut page = Vec::new();
        Man::new(args::definition())
            .render(&mut page)
            .map_err(|error| Failure::of_system("standard output", &error))?;
        return print(&page);
    };
    fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(args::definition(), directory))
        .map_err(|error| Failure::of_system(&directory.display().to_string(), &error))?;
    Ok(0)
}

pub(crate) fn print(bytes: &[u8]) -> Result<u8, Failure> {
    // Whoever has left has read enough.
    output::print(&String::from_utf8_lossy(bytes)).map(|_| 0)
}
