//! The parser against libpq itself, where libpq is installed.
//!
//! Compared is what `PQconninfoParse` does: the grammar, and which parameters there are. What values
//! they may have, libpq finds out when it connects. To compare with another version than the
//! installed one, let `LD_LIBRARY_PATH` name the directory of its `libpq.so.5`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::str;

use super::parameters::{DEFINITIONS, Parameters};
use super::tests::{Random, mutate, seeds};
use super::{Problem, extras};

const STRINGS: usize = 100_000;

/// The differences that are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rule {
    /// Refused here: it is, or ends, a password that was not encoded, whose rest would be shown as the
    /// host.
    BareAtSign,
    /// Refused here: a line break or tab in a URL is not part of a name, but comes from a file or
    /// terminal.
    LineBreakInUrl,
    /// Refused here: names and passwords are UTF-8.
    NotUtf8,
    /// Accepted here: parameters that other clients read from the same string.
    ForAnotherClient,
    /// Accepted here: parameters that an older or, for `servicefile`, a present libpq does not have.
    NewerThanThisLibpq,
    /// Refused here: what libpq accepted before version 14, without effect.
    DroppedBy14,
    /// libpq took spaces in URLs for parts of the values before version 18.
    SpacesBefore18,
}

#[test]
fn strings_are_read_as_libpq_itself_reads_them() {
    let Some(libpq) = Libpq::build() else {
        say("nothing was compared with libpq: its headers and a C compiler are not installed\n");
        return;
    };
    let names = libpq.parse(&[]).names.into_iter().collect();
    let mut generator = Generator { random: Random(18), seeds: seeds(), names };
    let strings: Vec<_> = (0..STRINGS).map(|_| generator.string()).collect();
    let verdicts = libpq.parse(&strings);

    let (mut accepted, mut refused) = (0, 0);
    let mut differences: BTreeMap<Rule, usize> = BTreeMap::new();
    for (text, theirs) in strings.iter().zip(verdicts.parsed) {
        let ours = parse(text);
        if theirs.is_some() {
            accepted += 1;
        } else {
            refused += 1;
        }
        if ours.as_ref().ok() != theirs.as_ref() {
            let rule = explain(text, &ours, theirs.as_ref(), &verdicts.names, verdicts.version);
            let rule =
                rule.unwrap_or_else(|| panic!("{text:?}\nhere: {ours:?}\nlibpq: {theirs:?}"));
            *differences.entry(rule).or_default() += 1;
        }
    }
    say(&format!(
        "compared with libpq {}: {STRINGS} strings, of which it accepts {accepted} and refuses \
         {refused}; meant to differ: {differences:?}\n",
        verdicts.version
    ));
    // A comparison of nothing but refusals would say little.
    assert!(accepted > STRINGS / 4 && refused > STRINGS / 4, "{accepted}, {refused}");
    for rule in [Rule::BareAtSign, Rule::LineBreakInUrl, Rule::NotUtf8, Rule::ForAnotherClient] {
        assert!(differences.get(&rule).is_some_and(|&count| count > 100), "{rule:?} is not tested");
    }
}

/// What libtest does not capture, so that it is seen also if the test passes.
fn say(text: &str) {
    io::stdout().write_all(text.as_bytes()).unwrap();
}

/// Names and values, which need not be UTF-8 in libpq.
type Pairs = BTreeMap<String, Vec<u8>>;

fn parse(text: &str) -> Result<Pairs, Problem> {
    let known = Parameters::parse(text)?.into_known().ok_or("an unknown parameter")?;
    Ok(known.into_iter().map(|(name, value)| (name, value.into_bytes())).collect())
}

/// Which rule a difference is an instance of, if any.
fn explain(
    text: &str,
    ours: &Result<Pairs, Problem>,
    theirs: Option<&Pairs>,
    names: &BTreeSet<String>,
    version: u32,
) -> Option<Rule> {
    let is_url = text.starts_with("postgres://") || text.starts_with("postgresql://");
    if is_url && version < 180_000 && text.contains(' ') {
        return Some(Rule::SpacesBefore18);
    }
    match (ours, theirs) {
        (Err(problem), Some(_)) if is_url && problem.contains("after the host began") => {
            Some(Rule::BareAtSign)
        }
        (Err(problem), Some(_)) if is_url && problem.contains("white space at byte") => {
            text.contains(['\t', '\n', '\u{b}', '\u{c}', '\r']).then_some(Rule::LineBreakInUrl)
        }
        (Err(problem), Some(_)) if is_url && problem.contains("is not UTF-8") => {
            str::from_utf8(&percent_decoded(text)).is_err().then_some(Rule::NotUtf8)
        }
        (Err(_), Some(theirs))
            if ["authtype", "tty"].iter().any(|&name| theirs.contains_key(name)) =>
        {
            (version < 140_000).then_some(Rule::DroppedBy14)
        }
        (Ok(ours), None) if ours.keys().any(|name| extras::owner(name).is_some()) => {
            Some(Rule::ForAnotherClient)
        }
        (Ok(ours), None) if ours.keys().any(|name| !names.contains(name)) => {
            Some(Rule::NewerThanThisLibpq)
        }
        _ => None,
    }
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let mut rest = text.as_bytes();
    let mut decoded = Vec::new();
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let (byte, after) = match (byte, escaped) {
            (b'%', Some(escaped)) => (escaped, &after[2..]),
            (plain, _) => (plain, after),
        };
        decoded.push(byte);
        rest = after;
    }
    decoded
}

/// Makes up strings, the same on every run with the same libpq.
struct Generator {
    random: Random,
    seeds: Vec<&'static str>,
    /// The parameters that this libpq has.
    names: Vec<String>,
}

impl Generator {
    fn string(&mut self) -> String {
        let text = match self.random.below(10) {
            0..3 => {
                let seed = self.seeds[self.random.below(self.seeds.len())];
                mutate(seed, &mut self.random)
            }
            3..7 => self.url(),
            _ => self.keyword_values(),
        };
        // A string in C has no NUL in it.
        text.replace('\0', "")
    }

    fn url(&mut self) -> String {
        let mut parts = vec![self.one_of(&["postgresql://", "postgres://"]).to_owned()];
        if self.random.below(2) == 0 {
            parts.extend([self.piece(), self.maybe(":"), "@".into()]);
        }
        for index in 0..=self.random.below(3) {
            let host = self.piece();
            let host = if self.random.below(5) == 0 { format!("[{host}]") } else { host };
            let comma = if index > 0 { "," } else { "" };
            parts.extend([comma.into(), host, self.maybe(":")]);
        }
        parts.push(self.maybe("/"));
        for index in 0..self.random.below(4) {
            let before = if index == 0 { "?" } else { "&" };
            parts.extend([before.into(), self.name(), "=".into(), self.piece()]);
        }
        parts.concat()
    }

    /// Nothing, or a piece after a delimiter.
    fn maybe(&mut self, delimiter: &str) -> String {
        match self.random.below(2) {
            0 => format!("{delimiter}{}", self.piece()),
            _ => String::new(),
        }
    }

    fn keyword_values(&mut self) -> String {
        (0..self.random.below(5)).map(|_| self.keyword_value()).collect()
    }

    fn keyword_value(&mut self) -> String {
        const SPACES: &[&str] = &["", "", " ", "  ", "\t", "\n"];
        let piece = self.piece();
        let value = match self.random.below(3) {
            0 => format!("'{piece}'"),
            1 => format!("'{}'", piece.replace('\\', "\\\\").replace('\'', "\\'")),
            _ => piece,
        };
        let (before, after) = (self.one_of(SPACES), self.one_of(SPACES));
        format!("{}{before}={after}{value} ", self.name())
    }

    fn name(&mut self) -> String {
        const OTHERS: &[&str] = &["ssl", "requiressl", "schema", "pgbouncer", "u%73er", "Host", ""];
        match self.random.below(20) {
            0 => self.one_of(OTHERS).to_owned(),
            1 => DEFINITIONS[self.random.below(DEFINITIONS.len())].name.to_owned(),
            choice => {
                let name = self.names[self.random.below(self.names.len())].clone();
                if choice == 2 { mutate(&name, &mut self.random) } else { name }
            }
        }
    }

    /// A few characters, most of them harmless.
    fn piece(&mut self) -> String {
        const PLAIN: &[&str] =
            &["a", "host", "10.0.0.1", "5432", "::1", "true", "1", "é", "日", "/tmp", "-"];
        const SPECIAL: &[&str] = &[
            "@",
            ":",
            "/",
            "?",
            "&",
            "=",
            "%",
            "[",
            "]",
            ",",
            "'",
            "\\",
            " ",
            "\n",
            "\t",
            "#",
            "+",
            "%2F",
            "%2c",
            "%20",
            "%41",
            "%00",
            "%ff",
            "%E6%97%A5",
            "%4",
            "%zz",
        ];
        let count = self.random.below(4);
        let part = |_| {
            let parts = if self.random.below(10) == 0 { SPECIAL } else { PLAIN };
            self.one_of(parts)
        };
        (0..count).map(part).collect()
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.random.below(all.len())]
    }
}

/// A program that asks libpq, in a directory of its own that is removed in the end.
struct Libpq {
    directory: PathBuf,
}

struct Verdicts {
    version: u32,
    /// Those of the parameters that this version has.
    names: BTreeSet<String>,
    /// One for each string: what it gives, if it is accepted.
    parsed: Vec<Option<Pairs>>,
}

impl Libpq {
    fn build() -> Option<Self> {
        let headers = [pg_config("--includedir"), Some("/usr/include/postgresql".into())];
        let headers =
            headers.into_iter().flatten().find(|path| path.join("libpq-fe.h").exists())?;
        let directory = std::env::temp_dir().join(format!("pglock-libpq-{}", process::id()));
        fs::create_dir_all(&directory).unwrap();
        let libpq = Self { directory };
        let source = libpq.directory.join("libpq.c");
        fs::write(&source, include_str!("libpq.c")).unwrap();
        let mut compiler = Command::new("cc");
        compiler.arg(&source).arg("-o").arg(libpq.program()).arg("-I").arg(headers);
        if let Some(libraries) = pg_config("--libdir") {
            compiler.arg("-L").arg(&libraries);
            compiler.arg(format!("-Wl,-rpath,{}", libraries.display()));
        }
        let output = match compiler.arg("-lpq").output() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            output => output.unwrap(),
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(libpq)
    }

    fn program(&self) -> PathBuf {
        self.directory.join("libpq")
    }

    fn parse(&self, strings: &[String]) -> Verdicts {
        let input = self.directory.join("strings");
        let mut content = Vec::new();
        for text in strings {
            content.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
            content.extend(text.as_bytes());
        }
        fs::write(&input, content).unwrap();
        let output =
            Command::new(self.program()).stdin(File::open(&input).unwrap()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        Verdicts::read(&output.stdout, strings.len())
    }
}

impl Drop for Libpq {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Verdicts {
    fn read(output: &[u8], count: usize) -> Self {
        let end = output.windows(2).position(|two| two == b"\n\n").unwrap();
        let mut lines = str::from_utf8(&output[..end]).unwrap().lines();
        let version = lines.next().unwrap().parse().unwrap();
        let names = lines.map(ToOwned::to_owned).collect();
        let mut rest = &output[end + 2..];
        let parsed = (0..count).map(|_| read_verdict(&mut rest)).collect();
        assert!(rest.is_empty());
        Self { version, names, parsed }
    }
}

fn read_verdict(rest: &mut &[u8]) -> Option<Pairs> {
    if take(rest, 1) == [0] {
        return None;
    }
    let mut pairs = Pairs::new();
    loop {
        let name = take_text(rest);
        if name.is_empty() {
            return Some(pairs);
        }
        pairs.insert(String::from_utf8(name.to_vec()).unwrap(), take_text(rest).to_vec());
    }
}

fn take_text<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let length = u32::from_be_bytes(take(rest, 4).try_into().unwrap());
    take(rest, usize::try_from(length).unwrap())
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, after) = rest.split_at(count);
    *rest = after;
    taken
}

fn pg_config(what: &str) -> Option<PathBuf> {
    let output = Command::new("pg_config").arg(what).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    Some(Path::new(path.trim()).to_path_buf())
}
