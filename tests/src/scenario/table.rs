//! Who is to reach whom, as a person writes it down: lines that open and shut, of which the last that speaks of a question
//! holds. What no line speaks of is open.
//!
//! ```text
//! shut * -> x/*
//! open y/b,z/* -> x/a 80/TCP,81
//! shut x/b -> * v6
//! ```
//! A side is a list of `NAMESPACE/POD` with `*` for either part, or `*` alone. A port is `80`, `80/TCP` or `TCP`; without any
//! the line speaks of all of them. `v4` or `v6` at the end: of that family only.

use std::fmt;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// What a probe speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// A handshake.
    Tcp,
    /// A datagram and its answer.
    Udp,
    /// An INIT that is seen at the other end.
    Sctp,
}

impl Transport {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

impl std::str::FromStr for Transport {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|t| t.as_str() == text);
        found.with_context(|| format!("{text:?} is none of TCP, UDP and SCTP"))
    }
}

/// One probe: does the pod reach the other on this port?
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Question {
    /// `NAMESPACE/POD` that asks.
    pub from: String,
    /// `NAMESPACE/POD` that is to answer.
    pub to: String,
    /// Destination port.
    pub port: u16,
    /// Protocol.
    pub transport: Transport,
    /// Family.
    pub v6: bool,
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.v6 { "v6" } else { "v4" };
        write!(f, "{} -> {} {}/{} {family}", self.from, self.to, self.port, self.transport.as_str())
    }
}

/// The whole table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Table {
    lines: Vec<Line>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    open: bool,
    from: Side,
    to: Side,
    ports: Vec<Port>,
    v6: Option<bool>,
}

/// `None` is any.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Side(Vec<(Option<String>, Option<String>)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Port {
    number: Option<u16>,
    transport: Option<Transport>,
}

impl Table {
    /// Whether the pod is to be reached.
    pub fn open(&self, question: &Question) -> bool {
        self.lines.iter().rev().find(|line| line.speaks_of(question)).is_none_or(|line| line.open)
    }
}

impl TryFrom<String> for Table {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let lines = lines.map(|line| parse(line).with_context(|| format!("in the line {line:?}")));
        Ok(Self { lines: lines.collect::<Result<_>>()? })
    }
}

impl Line {
    fn speaks_of(&self, question: &Question) -> bool {
        let port = |port: &Port| {
            port.number.is_none_or(|number| number == question.port)
                && port.transport.is_none_or(|transport| transport == question.transport)
        };
        self.from.holds(&question.from)
            && self.to.holds(&question.to)
            && (self.ports.is_empty() || self.ports.iter().any(port))
            && self.v6.is_none_or(|v6| v6 == question.v6)
    }
}

impl Side {
    fn holds(&self, full_name: &str) -> bool {
        let Some((namespace, pod)) = full_name.split_once('/') else { return false };
        self.0
            .iter()
            .any(|(n, p)| n.as_ref().is_none_or(|n| n == namespace) && p.as_ref().is_none_or(|p| p == pod))
    }
}

fn parse(line: &str) -> Result<Line> {
    let mut words = line.split_whitespace();
    let open = match words.next() {
        Some("open") => true,
        Some("shut") => false,
        _ => bail!("a line begins with open or shut"),
    };
    let from = side(words.next().context("who?")?)?;
    if words.next() != Some("->") {
        bail!("-> stands between the two sides");
    }
    let to = side(words.next().context("to whom?")?)?;
    let (mut ports, mut v6) = (Vec::new(), None);
    for word in words {
        match word {
            "v4" => v6 = Some(false),
            "v6" => v6 = Some(true),
            list => ports = list.split(',').map(port).collect::<Result<_>>()?,
        }
    }
    Ok(Line { open, from, to, ports, v6 })
}

fn side(list: &str) -> Result<Side> {
    let any = |part: &str| (part != "*").then(|| part.to_owned());
    let one = |name: &str| match name.split_once('/') {
        Some((namespace, pod)) => Ok((any(namespace), any(pod))),
        None if name == "*" => Ok((None, None)),
        None => bail!("{name:?} is not NAMESPACE/POD"),
    };
    Ok(Side(list.split(',').map(one).collect::<Result<_>>()?))
}

fn port(text: &str) -> Result<Port> {
    let number = |text: &str| text.parse().with_context(|| format!("{text:?} is no port"));
    Ok(match text.split_once('/') {
        Some((port, transport)) => Port { number: Some(number(port)?), transport: Some(transport.parse()?) },
        None if text.starts_with(|c: char| c.is_ascii_digit()) => {
            Port { number: Some(number(text)?), transport: None }
        }
        None => Port { number: None, transport: Some(text.parse()?) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(from: &str, to: &str, port: u16, transport: Transport, v6: bool) -> Question {
        Question { from: from.into(), to: to.into(), port, transport, v6 }
    }

    #[test]
    fn the_last_line_that_speaks_of_a_question_holds() {
        let table = Table::try_from("shut * -> x/*\nopen y/*,z/b -> x/a 80/TCP,81\n".to_owned()).unwrap();
        let open = |from, to, port, transport| table.open(&question(from, to, port, transport, false));
        assert!(open("x/a", "y/a", 80, Transport::Udp), "no line speaks of it");
        assert!(!open("y/a", "x/b", 80, Transport::Tcp));
        assert!(open("y/a", "x/a", 80, Transport::Tcp));
        assert!(!open("y/a", "x/a", 80, Transport::Udp));
        assert!(open("z/b", "x/a", 81, Transport::Sctp));
        assert!(!open("z/a", "x/a", 81, Transport::Sctp));
    }

    #[test]
    fn a_line_may_speak_of_one_family() {
        let table = Table::try_from("shut */a -> * TCP v6".to_owned()).unwrap();
        assert!(!table.open(&question("x/a", "y/a", 80, Transport::Tcp, true)));
        assert!(table.open(&question("x/a", "y/a", 80, Transport::Tcp, false)));
        assert!(table.open(&question("x/a", "y/a", 80, Transport::Udp, true)));
        assert!(table.open(&question("x/b", "y/a", 80, Transport::Tcp, true)));
    }

    #[test]
    fn nonsense_is_refused_with_the_line() {
        for line in ["close * -> *", "open *", "open * -> x", "open * -> x/a eighty", "shut x/a x/b"] {
            let error = Table::try_from(line.to_owned()).unwrap_err();
            assert!(format!("{error:#}").contains(line), "{error:#}");
        }
    }
}
