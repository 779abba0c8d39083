//! From a text to what can be evaluated: the library reads it and expands its macros; what is read is walked once, so that all
//! that it names is there, and nothing in it is deeper than evaluation may go.
//!
//! The library recurses as deep as a text makes it, so texts are read on a thread with a stack for that. That a thread cannot be
//! started says nothing of a text: it is [`NotNow`], and to be tried again.

use std::{collections::HashMap, panic::catch_unwind};

use cel::{
    IdedExpr,
    common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, operators},
    parser::{
        PrattParser,
        pratt_parser::{Lexer, Token, TokenKind},
    },
};

use super::{NotNow, pattern::Pattern, weight};

/// How deep an expression may go.
const DEPTH: usize = 64;
/// How deep brackets may be nested, where the library counts them.
const BRACKETS: u16 = 24;
/// The most patterns of a filter, and the most characters of all of them: what compiling them takes is not counted when it is
/// evaluated, and what they hold once they are compiled is far more than their text.
pub(super) const PATTERNS: usize = 8;
const IN_PATTERNS: usize = 256;
/// The stack of the thread that reads a text: whatever 2,048 characters make of the library's recursion, they fit.
const STACK: usize = 32 * 1024 * 1024;

/// What an event is known by.
const VARIABLES: [&str; 4] = ["type", "source", "occurred_at", "payload"];

/// Functions, and with how many arguments each is called: as `f(x)`, and as `x.f()`.
const FUNCTIONS: [(&str, &[usize], &[usize]); 22] = [
    ("size", &[1], &[0]),
    ("contains", &[], &[1]),
    ("startsWith", &[], &[1]),
    ("endsWith", &[], &[1]),
    ("matches", &[2], &[1]),
    ("int", &[1], &[]),
    ("uint", &[1], &[]),
    ("double", &[1], &[]),
    ("string", &[1], &[]),
    ("bool", &[1], &[]),
    ("timestamp", &[1], &[]),
    ("duration", &[1], &[]),
    ("getFullYear", &[], &[0, 1]),
    ("getMonth", &[], &[0, 1]),
    ("getDate", &[], &[0, 1]),
    ("getDayOfMonth", &[], &[0, 1]),
    ("getDayOfWeek", &[], &[0, 1]),
    ("getDayOfYear", &[], &[0, 1]),
    ("getHours", &[], &[0, 1]),
    ("getMinutes", &[], &[0, 1]),
    ("getSeconds", &[], &[0, 1]),
    ("getMilliseconds", &[], &[0, 1]),
];

const MACROS: [&str; 7] = [
    operators::HAS,
    operators::ALL,
    operators::EXISTS,
    operators::EXISTS_ONE,
    "existsOne",
    operators::MAP,
    operators::FILTER,
];

const OPERATORS: [&str; 19] = [
    operators::CONDITIONAL,
    operators::LOGICAL_AND,
    operators::LOGICAL_OR,
    operators::LOGICAL_NOT,
    operators::SUBSTRACT,
    operators::ADD,
    operators::MULTIPLY,
    operators::DIVIDE,
    operators::MODULO,
    operators::EQUALS,
    operators::NOT_EQUALS,
    operators::GREATER_EQUALS,
    operators::LESS_EQUALS,
    operators::GREATER,
    operators::LESS,
    operators::NEGATE,
    operators::INDEX,
    operators::IN,
    operators::NOT_STRICTLY_FALSE,
];

/// A filter that can be evaluated.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) expression: IdedExpr,
    /// By their text.
    pub(super) patterns: HashMap<String, Pattern>,
    /// The memory that it takes at most.
    pub(super) bytes: usize,
}

/// Compiles filters, all of them on one thread. Of each, what came of it, or the rule that it breaks, as the end of a sentence
/// that begins with "the filter".
pub(super) fn compile<T: AsRef<str> + Sync>(texts: &[T]) -> Result<Vec<Result<Program, String>>, NotNow> {
    let read_all = || {
        let read_one = |text: &T| {
            let text = text.as_ref();
            // What the library does with an odd text is its own; nothing of it may keep others from being read.
            catch_unwind(|| read(text)).unwrap_or_else(|_| Err(at(None, "it cannot be read")))
        };
        texts.iter().map(read_one).collect()
    };
    std::thread::scope(|scope| {
        let reader = std::thread::Builder::new()
            .name("filters".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, read_all);
        let read = reader.map_err(|error| NotNow(error.to_string()))?.join();
        read.map_err(|_| NotNow("the thread that reads them ended".to_owned()))
    })
}

fn read(text: &str) -> Result<Program, String> {
    let parser = PrattParser::new()
        .max_recursion_depth(BRACKETS)
        .error_recovery_limit(4)
        .enable_ident_escape_syntax(true);
    let mut expression = parser.parse(text).map_err(|errors| {
        let errors = errors.errors;
        let placed = errors.iter().find(|error| error.pos.0 > 0);
        match placed.or(errors.first()) {
            Some(error) => {
                let column = usize::try_from(error.pos.1).ok().filter(|column| *column > 0);
                at(column, error.msg.trim_start_matches("Syntax error: "))
            }
            None => at(None, "it cannot be read"),
        }
    })?;
    let mut walk = Walk {
        text,
        scopes: Vec::new(),
        patterns: HashMap::new(),
        matches: 0,
        in_patterns: 0,
    };
    walk.expression(&expression, DEPTH)?;
    if gives_no_truth(&expression.expr) {
        return Err("must be true or false for an event, and is neither".to_owned());
    }
    let patterns = walk.patterns;
    let of_patterns: usize = patterns
        .iter()
        .map(|(text, pattern)| text.len() + pattern.bytes)
        .sum();
    let bytes = weight::settle(&mut expression) + of_patterns;
    Ok(Program {
        expression,
        patterns,
        bytes,
    })
}

/// A rule that is broken somewhere.
fn at(column: Option<usize>, what: impl std::fmt::Display) -> String {
    let column = column.map(|column| format!("column {column}: "));
    format!("must be a CEL expression: {}{what}", column.unwrap_or_default())
}

/// Looks at each part of an expression.
struct Walk<'t> {
    text: &'t str,
    /// The variables of the macros that it is within.
    scopes: Vec<&'t str>,
    patterns: HashMap<String, Pattern>,
    /// How often `matches` was called.
    matches: usize,
    /// The characters of its patterns.
    in_patterns: usize,
}

type Walked = Result<(), String>;

impl<'t> Walk<'t> {
    fn expression<'e: 't>(&mut self, expression: &'e IdedExpr, deeper: usize) -> Walked {
        let Some(deeper) = deeper.checked_sub(1) else {
            return Err(format!("must be at most {DEPTH} levels deep"));
        };
        match &expression.expr {
            Expr::Literal(LiteralValue::Bytes(_)) => Err(at(None, "an event has no bytes")),
            Expr::Literal(_) => Ok(()),
            Expr::Ident(name) => self.name(name),
            Expr::Select(select) => self.expression(&select.operand, deeper),
            Expr::List(list) if list.optional_indices.is_empty() => list
                .elements
                .iter()
                .try_for_each(|element| self.expression(element, deeper)),
            Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) if !entry.optional => {
                    self.expression(&entry.key, deeper)?;
                    self.expression(&entry.value, deeper)
                }
                _ => Err(at(None, "there are no optional entries")),
            }),
            Expr::Call(call) => self.call(call, deeper),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension, deeper),
            Expr::Struct(_) => Err(at(None, "there are no messages to make")),
            Expr::List(_) | Expr::Unspecified => Err(at(None, "it cannot be read")),
        }
    }

    fn name(&self, name: &str) -> Walked {
        if VARIABLES.contains(&name) || self.scopes.contains(&name) {
            return Ok(());
        }
        let what = format!("there is no `{name}` (an event has type, source, occurred_at and payload)");
        Err(at(self.column(name, false), what))
    }

    fn call<'e: 't>(&mut self, call: &'e CallExpr, deeper: usize) -> Walked {
        let name = call.func_name.as_str();
        if let Some(target) = &call.target {
            self.function(name, call.args.len(), true)?;
            self.expression(target, deeper)?;
        } else if !OPERATORS.contains(&name) {
            self.function(name, call.args.len(), false)?;
        }
        if name == "matches" {
            self.pattern(call.args.last(), call.target.is_some())?;
        }
        call.args
            .iter()
            .try_for_each(|argument| self.expression(argument, deeper))
    }

    fn function(&self, name: &str, arguments: usize, member: bool) -> Walked {
        let otherwise = || {
            let what = format!("`{name}` is not called so");
            Err(at(self.column(name, member), what))
        };
        if MACROS.contains(&name) {
            return otherwise();
        }
        let known = FUNCTIONS.iter().find(|(known, _, _)| *known == name);
        let Some((_, global, of_a_value)) = known else {
            let what = format!("there is no function `{name}`");
            return Err(at(self.column(name, member), what));
        };
        let taken = if member { of_a_value } else { global };
        if taken.contains(&arguments) {
            Ok(())
        } else {
            otherwise()
        }
    }

    /// Patterns are compiled now: they have to be there.
    fn pattern(&mut self, pattern: Option<&IdedExpr>, member: bool) -> Walked {
        let column = self.column("matches", member);
        let Some(Expr::Literal(LiteralValue::String(text))) = pattern.map(|pattern| &pattern.expr) else {
            return Err(at(
                column,
                "the pattern of `matches` must be a text, not calculated",
            ));
        };
        let text = text.inner();
        self.matches += 1;
        if self.matches > PATTERNS {
            return Err(format!("must call `matches` at most {PATTERNS} times"));
        }
        self.in_patterns += text.chars().count();
        if self.in_patterns > IN_PATTERNS {
            let what = format!("its patterns must be of at most {IN_PATTERNS} characters together");
            return Err(at(column, what));
        }
        let compiled = Pattern::compile(text).map_err(|error| {
            at(
                column,
                format!("the pattern of `matches` cannot be taken: {error}"),
            )
        })?;
        self.patterns.insert(text.to_owned(), compiled);
        Ok(())
    }

    fn comprehension<'e: 't>(&mut self, comprehension: &'e ComprehensionExpr, deeper: usize) -> Walked {
        self.expression(&comprehension.iter_range, deeper)?;
        self.expression(&comprehension.accu_init, deeper)?;
        let before = self.scopes.len();
        self.scopes
            .extend([comprehension.accu_var.as_str(), comprehension.iter_var.as_str()]);
        let walked = [
            &comprehension.loop_cond,
            &comprehension.loop_step,
            &comprehension.result,
        ]
        .into_iter()
        .try_for_each(|part| self.expression(part, deeper));
        self.scopes.truncate(before);
        walked
    }

    /// Where a name stands in the text, from 1.
    fn column(&self, name: &str, member: bool) -> Option<usize> {
        let mut lexer = Lexer::new(self.text);
        let mut after_dot = false;
        loop {
            let token: Token = lexer.lex();
            match token.kind {
                TokenKind::TokEnd | TokenKind::TokError => return None,
                TokenKind::TokWhitespace | TokenKind::TokComment => {}
                TokenKind::TokIdent
                    if after_dot == member && self.text.get(token.start..token.end) == Some(name) =>
                {
                    let before = self.text.get(..token.start)?;
                    return Some(before.chars().count() + 1);
                }
                kind => after_dot = kind == TokenKind::TokDot,
            }
        }
    }
}

/// Whether it can be seen that an expression is neither true nor false.
fn gives_no_truth(expression: &Expr) -> bool {
    match expression {
        Expr::Literal(literal) => !matches!(literal, LiteralValue::Boolean(_)),
        Expr::List(_) | Expr::Map(_) => true,
        Expr::Call(call) => matches!(
            call.func_name.as_str(),
            operators::ADD
                | operators::SUBSTRACT
                | operators::MULTIPLY
                | operators::DIVIDE
                | operators::MODULO
                | operators::NEGATE
                | "size"
                | "int"
                | "uint"
                | "double"
                | "string"
                | "timestamp"
                | "duration"
        ),
        Expr::Ident(name) => name != "payload",
        _ => false,
    }
}
