//! `peer why` in words: the answer first, then the ladder that led to it.

use manx_agent::view::{PeerDiagnosis, RungResult};

use crate::output::{Exit, Show, Style};
use crate::show::{age, printable};
use crate::text::{GREEN, Page, RED};

impl Show for PeerDiagnosis {
    fn text(&self, style: &Style) -> String {
        let mut page = Page::default();
        match (&self.name, &self.address, &self.state) {
            (Some(name), Some(address), Some(state)) => {
                page.line("peer", format!("{name} ({address}) on {}", self.node));
                let colour = if self.answer.is_none() { GREEN } else { RED };
                page.coloured("state", state, colour, &format!(" for {}", age(self.since, style.now)), style);
            }
            _ => page.line("peer", format!("{} is no peer of {}", self.asked, self.node)),
        }
        let established = self.state.as_deref() == Some("Established");
        match (&self.answer, established) {
            (Some(answer), _) => page.coloured("answer", answer, RED, "", style),
            (None, true) => page.line("answer", "nothing is wrong"),
            (None, false) => page.line("answer", "nothing is known to be wrong: it is being tried"),
        }
        if let Some(remedy) = &self.remedy {
            page.line("remedy", remedy);
        }
        for nearly in &self.nearly {
            page.line("nearly", nearly);
        }
        // One rung that repeats the answer is no ladder.
        if self.rungs.len() < 2 {
            return page.finish();
        }
        let mut text = page.finish() + "\n";
        let width = self.rungs.iter().map(|r| r.name.len()).max().unwrap_or(0);
        for rung in &self.rungs {
            let (mark, colour) = match rung.result {
                RungResult::Ok => ("ok     ", None),
                RungResult::Failed => ("FAILED ", Some(RED)),
                RungResult::Unknown => ("?      ", None),
            };
            let mark = match colour.filter(|_| style.colour) {
                Some(colour) => format!("\x1b[{colour}m{mark}\x1b[0m"),
                None => mark.to_owned(),
            };
            text += &format!("{mark} {:width$}  {}\n", rung.name, printable(&rung.observed));
            if let Some(remedy) = rung.remedy.as_ref().filter(|_| style.wide) {
                text += &format!("        {:width$}  -> {}\n", "", printable(remedy));
            }
        }
        text
    }

    /// The rungs that failed.
    fn names(&self) -> Vec<String> {
        let failed = self.rungs.iter().filter(|r| r.result == RungResult::Failed);
        failed.map(|r| r.name.clone()).collect()
    }

    fn exit(&self) -> Exit {
        if self.answer.is_none() { Exit::Yes } else { Exit::No }
    }
}
