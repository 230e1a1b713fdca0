//! The rows of `table.txt` as messages. Each begins as one good announcement of [`VICTIM`], and the second column says, in words
//! with blanks between, what becomes of it:
//!
//! ```text
//!   FLAGS:CODE:VALUE   this attribute in place of the one with its code, or one more (flags and value in hexadecimal)
//!   +FLAGS:CODE:VALUE  one more, at the end
//!   -CODE              without this one
//!   ~OCTETS            these octets behind the attributes
//!   nlri=OCTETS        other NLRI       withdrawn=OCTETS  withdrawn routes       body=OCTETS  another body altogether
//! ```
//!
//! Dots in octets are for the eye. PATH stands for a good AS_PATH, REACH and UNREACH for good MP attributes of [`VICTIM_V6`].

/// What the message is about.
pub(crate) const VICTIM: &str = "20.80.0.0/12";
/// And in MP attributes.
pub(crate) const VICTIM_V6: &str = "fd50::/32";

const REACH: &str = "00020110fd000000000000000000000000000001 00 20fd500000";
const UNREACH: &str = "000201 20fd500000";

/// What becomes of the session and of the routes in the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing is wrong.
    Ok,
    /// Treat-as-withdraw: the session and all other routes live, these routes go.
    Withdraw,
    /// Attribute discard: the routes are taken without the attribute.
    Discard,
    /// Session reset with this code and subcode.
    Reset(u8, u8),
}

/// A line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    edits: &'static str,
    pub(crate) external: Outcome,
    pub(crate) internal: Outcome,
}

/// All of them.
pub(crate) fn rows() -> Vec<Row> {
    let lines = include_str!("table.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(row).collect()
}

fn row(line: &'static str) -> Row {
    let columns: Vec<_> = line.split('|').map(str::trim).collect();
    let [name, edits, external, internal] = columns[..] else { panic!("four columns: {line}") };
    Row { name, edits, external: outcome(external), internal: outcome(internal) }
}

fn outcome(text: &str) -> Outcome {
    match text {
        "ok" => Outcome::Ok,
        "withdraw" => Outcome::Withdraw,
        "discard" => Outcome::Discard,
        _ => {
            let (code, subcode) = text.strip_prefix("reset ").unwrap().split_once('/').unwrap();
            Outcome::Reset(code.parse().unwrap(), subcode.parse().unwrap())
        }
    }
}

/// A peer as the sender of messages.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sender {
    External { asn: u32 },
    Internal,
}

impl Sender {
    /// An AS_PATH as it sends one.
    fn path(self) -> Vec<u8> {
        let first = match self {
            Sender::External { asn } => asn,
            // Somebody outside, of whom it tells us.
            Sender::Internal => 64999,
        };
        [&[2, 1][..], &first.to_be_bytes()].concat()
    }

    fn attributes(self) -> Vec<Vec<u8>> {
        let mut list = vec![
            attribute(0x40, 1, &[0]),
            attribute(0x40, 2, &self.path()),
            attribute(0x40, 3, &[192, 0, 2, 1]),
        ];
        if let Sender::Internal = self {
            list.push(attribute(0x40, 5, &[0, 0, 0, 100]));
        }
        list
    }
}

impl Row {
    /// What is expected of a session with this sender.
    pub(crate) fn expected(&self, sender: Sender) -> Outcome {
        match sender {
            Sender::External { .. } => self.external,
            Sender::Internal => self.internal,
        }
    }

    /// Whether the message announces [`VICTIM`], [`VICTIM_V6`] or both, as far as it can be read.
    pub(crate) fn announces(&self) -> (bool, bool) {
        let v4 = !self.edits.split(' ').any(|word| word == "nlri=");
        (v4, self.edits.contains(":14:") && self.edits.contains("REACH") && !self.edits.contains("UNREACH"))
    }

    /// The message.
    pub(crate) fn message(&self, sender: Sender) -> Vec<u8> {
        edited(self.edits, sender)
    }
}

/// A good announcement of [`VICTIM`] with these edits.
pub(crate) fn edited(edits: &str, sender: Sender) -> Vec<u8> {
    let octets = |text: &str| match text.split('.').next() {
        Some("PATH") => [sender.path(), octets_of(text.strip_prefix("PATH").unwrap())].concat(),
        Some("REACH") => hex(REACH),
        Some("UNREACH") => hex(UNREACH),
        _ => octets_of(text),
    };
    let parse = |text: &str| {
        let mut fields = text.splitn(3, ':');
        let flags = u8::from_str_radix(fields.next().unwrap(), 16).unwrap();
        let code: u8 = fields.next().unwrap().parse().unwrap();
        (code, attribute(flags, code, &octets(fields.next().unwrap())))
    };
    let mut attributes = sender.attributes();
    let (mut withdrawn, mut nlri, mut tail) = (Vec::new(), vec![12, 20, 80], Vec::new());
    for word in edits.split_whitespace() {
        if let Some(text) = word.strip_prefix("body=") {
            return message(2, &octets(text));
        } else if let Some(text) = word.strip_prefix("nlri=") {
            nlri = octets(text);
        } else if let Some(text) = word.strip_prefix("withdrawn=") {
            withdrawn = octets(text);
        } else if let Some(text) = word.strip_prefix('~') {
            tail = octets(text);
        } else if let Some(code) = word.strip_prefix('-') {
            attributes.retain(|a| a[1] != code.parse::<u8>().unwrap());
        } else if let Some(text) = word.strip_prefix('+') {
            attributes.push(parse(text).1);
        } else {
            let (code, attribute) = parse(word);
            match attributes.iter_mut().find(|a| a[1] == code) {
                Some(old) => *old = attribute,
                // Before the others: MP_REACH_NLRI belongs there (RFC 7606 5.1).
                None => attributes.insert(0, attribute),
            }
        }
    }
    message(2, &body(&withdrawn, &[attributes.concat(), tail].concat(), &nlri))
}

fn octets_of(text: &str) -> Vec<u8> {
    hex(&text.replace('.', ""))
}

fn body(withdrawn: &[u8], attributes: &[u8], nlri: &[u8]) -> Vec<u8> {
    let counted = |field: &[u8]| [&u16::try_from(field.len()).unwrap().to_be_bytes(), field].concat();
    [counted(withdrawn), counted(attributes), nlri.to_vec()].concat()
}

/// Bytes from hexadecimal; white space does not count.
pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// A message of any type around a body.
pub(crate) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0xff; 16];
    out.extend_from_slice(&u16::try_from(19 + body.len()).unwrap().to_be_bytes());
    out.push(kind);
    out.extend_from_slice(body);
    out
}

/// A path attribute; the length is an extended one where the flags or the value ask for it.
pub(crate) fn attribute(flags: u8, code: u8, value: &[u8]) -> Vec<u8> {
    let mut out = if value.len() > 255 || flags & 0x10 != 0 {
        let [high, low] = u16::try_from(value.len()).unwrap().to_be_bytes();
        vec![flags | 0x10, code, high, low]
    } else {
        vec![flags, code, u8::try_from(value.len()).unwrap()]
    };
    out.extend_from_slice(value);
    out
}
