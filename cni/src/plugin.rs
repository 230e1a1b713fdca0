//! One call of the plugin: environment and standard input in, standard output and exit status out.
//!
//! stdout carries JSON or nothing: any other byte fails the pod.

use std::io::{Read, Write};

use serde_json::Value;

use crate::conf::NetConf;
use crate::environment::Call;
use crate::link::LinkError;
use crate::spec::{self, Error, Version, code};
use crate::store::StoreError;
use crate::{add, check, remove};

/// Configurations are some kilobytes, with a prevResult and annotations some dozen.
const MAX_INPUT: u64 = 16 * 1024 * 1024;

/// Does what the environment asks for; `now` in epoch seconds. The exit status is 0 or 1.
pub fn run(
    variable: impl Fn(&str) -> Option<String>,
    stdin: impl Read,
    stdout: &mut impl Write,
    now: u64,
) -> u8 {
    let call = Call::parse(&variable);
    let mut input = Vec::new();
    // Without a command it may be a person at a terminal, who would wait.
    if variable("CNI_COMMAND").is_some_and(|command| !command.is_empty())
        && let Err(e) = stdin.take(MAX_INPUT).read_to_end(&mut input)
    {
        let error = Error::new(code::IO, "standard input cannot be read", e.to_string());
        return fail(stdout, &error, Version::V1_1_0);
    }
    match call.and_then(|call| answer(call, &input, stdout, now)) {
        Ok(()) => 0,
        Err(error) => fail(stdout, &error, Version::to_answer(&input)),
    }
}

fn answer(call: Call, input: &[u8], stdout: &mut impl Write, now: u64) -> Result<(), Error> {
    let verb = call.verb();
    let conf = || NetConf::parse(input, verb);
    match call {
        Call::Add { key, netns, args } => {
            let conf = conf()?;
            let attached = add::add(key, &netns, args, &conf, now)?;
            let printed = print(stdout, &attached.result.to_json(conf.version));
            if printed.is_err() {
                attached.undo(now);
            }
            printed
        }
        Call::Del { key } => remove::del(&key, &conf()?, now),
        Call::Check { key, netns } => check::check(&key, &netns, &conf()?),
        Call::Gc => remove::gc(&conf()?, now),
        Call::Status => check::status(&conf()?, now),
        Call::Version => print(stdout, &spec::version_report(Version::to_answer(input))),
    }
}

fn print(stdout: &mut impl Write, json: &Value) -> Result<(), Error> {
    let mut text = serde_json::to_vec(json).expect("a JSON value has a text");
    text.push(b'\n');
    stdout
        .write_all(&text)
        .and_then(|()| stdout.flush())
        .map_err(|e| Error::new(code::IO, "standard output cannot be written", e.to_string()))
}

fn fail(stdout: &mut impl Write, error: &Error, version: Version) -> u8 {
    // Nobody is left to tell when this fails.
    drop(print(stdout, &error.to_json(version)));
    1
}

impl From<LinkError> for Error {
    fn from(error: LinkError) -> Self {
        Self::new(code::KERNEL, "the kernel refused", error.to_string())
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let details = error.to_string();
        match error {
            StoreError::Exhausted { .. } => Self::new(
                code::TRY_AGAIN_LATER,
                "there are no free addresses",
                format!("{details}; `manxctl ipam` tells by whom, a larger pod CIDR helps"),
            ),
            StoreError::Held { .. } => {
                Self::new(code::TRY_AGAIN_LATER, "the fixed address is in use", details)
            }
            StoreError::Busy(_) => Self::new(code::TRY_AGAIN_LATER, "the pod is being attached", details),
            StoreError::Attached(_) => Self::new(
                code::ATTACHED,
                "the pod is attached already",
                format!("{details}; DEL comes first"),
            ),
            StoreError::Io { .. } => {
                Self::new(code::STATE, "the plugin's state cannot be read or changed", details)
            }
        }
    }
}
