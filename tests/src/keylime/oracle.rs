use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{configuration, installation};
use crate::process::isolate;

/// Judges each line of standard input, `[function, case]`, and answers with the ids of the events
/// that its judgement consists of; of an input that is not taken at all, `refused: ` and why.
const PROGRAM: &str = "\
import hashlib, json, os, re, sys, types
# Keylime writes its log to standard output.
answers = os.fdopen(os.dup(1), 'w')
os.dup2(2, 1)
from keylime.common import algorithms
from keylime.ima import ast, file_signatures, ima, ima_dm

def ima_list(case):
    policy = json.loads(case['policy'])
    ima.validate_runtime_policy(policy)
    keyrings = file_signatures.ImaKeyrings()
    tenant = file_signatures.ImaKeyring.from_string(policy['verification-keys'])
    keyrings.set_tenant_keyring(tenant)
    _, failure = ima.process_measurement_list(
        None, case['list'].split('\\n'), policy, pcrval=case['pcr'], ima_keyrings=keyrings,
        boot_aggregates=case['aggregates'], hash_alg=algorithms.Hash(case['bank']))
    return [event.event_id for event in failure.events]

def matches(case):
    pattern = re.compile(case['pattern'])
    return [str(n) for n, text in enumerate(case['texts']) if pattern.match(text)]

def devices(case):
    validator = ima_dm.DmIMAValidator(case['policy'])
    events = []
    for name, text in case['events']:
        data = text.encode()
        digest = ast.Digest('sha256:' + hashlib.sha256(data).hexdigest())
        failure = validator.validate(digest, types.SimpleNamespace(name=name),
                                     types.SimpleNamespace(data=data))
        events += failure.events
    events += validator.invalid().events
    return [event.event_id for event in events]

functions = {'ima_list': ima_list, 'matches': matches, 'devices': devices}
for line in sys.stdin:
    name, case = json.loads(line)
    try:
        answer = functions[name](case)
    except Exception as error:
        answer = ['refused: ' + type(error).__name__ + ': ' + str(error)]
    print(json.dumps(answer), file=answers, flush=True)
";

/// Keylime's own judgement, without a server around it.
#[derive(Debug)]
pub struct Oracle {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Oracle {
    /// Starts it, with its configuration and log in `directory`.
    pub fn start(directory: &Path) -> Result<Self> {
        let values = ["{verifier_port}", "{registrar_tls_port}"].map(|name| (name, "1".to_owned()));
        configuration::write(directory, "verifier", configuration::VERIFIER, &values)?;
        configuration::write(directory, "logging", configuration::LOGGING, &[])?;
        let python = installation()?.join("bin/python3");
        let mut python = configuration::command(&python, directory, &["verifier", "logging"]);
        isolate(&mut python);
        let log = fs::File::create(directory.join("oracle.log"))?;
        let mut child = python
            .args(["-c", PROGRAM])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("cannot start Keylime's Python")?;
        let questions = child.stdin.take().context("no standard input")?;
        let answers = child.stdout.take().context("no standard output")?;
        Ok(Self {
            child,
            questions,
            answers: BufReader::new(answers),
        })
    }

    /// The ids of what Keylime finds wrong with an IMA list: nothing, if it accepts it.
    ///
    /// `case` has the `list`, the text of the runtime `policy`, the quoted `pcr` 10 in hex, its
    /// `bank`, and what `boot_aggregate` may be, by bank (`aggregates`).
    pub fn ima_list(&mut self, case: &Value) -> Result<Vec<String>> {
        self.ask("ima_list", case)
    }

    /// Which of the `texts` a pattern of Python's `re` matches at their start; `None` if it is none.
    pub fn matches(&mut self, pattern: &str, texts: &[&str]) -> Result<Option<Vec<bool>>> {
        let case = serde_json::json!({"pattern": pattern, "texts": texts});
        let answer = self.ask("matches", &case)?;
        if answer
            .first()
            .is_some_and(|first| first.starts_with("refused: "))
        {
            return Ok(None);
        }
        let numbers: Vec<usize> = answer.iter().map(|n| n.parse()).collect::<Result<_, _>>()?;
        Ok(Some(
            (0..texts.len()).map(|n| numbers.contains(&n)).collect(),
        ))
    }

    /// The ids of what Keylime finds wrong with devices of the device mapper.
    ///
    /// `case` has the device-mapper `policy`, and `events` as pairs of name and text.
    pub fn devices(&mut self, case: &Value) -> Result<Vec<String>> {
        self.ask("devices", case)
    }

    fn ask(&mut self, function: &str, case: &Value) -> Result<Vec<String>> {
        writeln!(self.questions, "{}", serde_json::json!([function, case]))?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        serde_json::from_str(&answer).context("Keylime's Python gave no answer: see oracle.log")
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
