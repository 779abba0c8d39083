//! Evaluation, which counts its steps.
//!
//! The library's own evaluation has no limit: an expression of a few characters over a payload of many elements runs for
//! minutes and fills memory. Here each node costs a step each time it is evaluated, and what is done with a value costs more, by
//! the value's size. Nothing takes time or memory that is not paid for first. What values do when they are added, compared
//! or converted is the library's ([`operate`](super::operate)), and a test holds both evaluations against each other.

use cel::{
    IdedExpr, Value,
    common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, operators},
    objects::{Key, KeyRef, Map},
};

use super::{Subject, Verdict, compile::Program};

/// Why there is no value.
#[derive(Debug)]
pub(super) enum Stop {
    /// The steps are used up. Nothing makes up for that.
    TooCostly,
    /// It cannot be evaluated for this event; what is beside it may make that unimportant.
    Failed(String),
}

pub(super) type Evaluated<T = Value> = Result<T, Stop>;

pub(super) fn failed<T>(why: impl Into<String>) -> Evaluated<T> {
    Err(Stop::Failed(why.into()))
}

/// One filter, one event.
pub(super) struct Evaluation<'a> {
    pub(super) program: &'a Program,
    subject: &'a Subject<'a>,
    steps: u32,
    left: usize,
    /// The variables of the macros that it is within, innermost last.
    variables: Vec<(&'a str, Value)>,
}

impl<'a> Evaluation<'a> {
    pub(super) fn new(program: &'a Program, subject: &'a Subject<'a>, steps: u32) -> Self {
        Self {
            program,
            subject,
            steps,
            left: steps as usize,
            variables: Vec::new(),
        }
    }

    pub(super) fn verdict(mut self) -> Verdict {
        match self.value(&self.program.expression) {
            Ok(Value::Bool(true)) => Verdict::Matches,
            Ok(Value::Bool(false)) => Verdict::False,
            Ok(other) => Verdict::Failed(format!("it gives {}, not true or false", kind(&other))),
            Err(Stop::Failed(why)) => Verdict::Failed(why),
            Err(Stop::TooCostly) => Verdict::Failed(format!(
                "it is too costly for this event: it takes more than {} steps",
                self.steps
            )),
        }
    }

    /// Takes steps; fails once there are none left.
    pub(super) fn pay(&mut self, steps: usize) -> Evaluated<()> {
        if let Some(left) = self.left.checked_sub(steps) {
            self.left = left;
            return Ok(());
        }
        self.left = 0;
        Err(Stop::TooCostly)
    }

    fn value(&mut self, expression: &'a IdedExpr) -> Evaluated {
        self.pay(1)?;
        match &expression.expr {
            Expr::Literal(literal) => self.literal(literal),
            Expr::Ident(name) => self.variable(name),
            Expr::Select(select) => {
                let operand = self.value(&select.operand)?;
                let found = member(&operand, &select.field)?;
                match (select.test, found) {
                    (true, found) => Ok(Value::Bool(found.is_some())),
                    (false, Some(found)) => Ok(found.clone()),
                    (false, None) => failed(format!("there is no `{}`", select.field)),
                }
            }
            Expr::List(list) => {
                let elements = list.elements.iter().map(|element| self.value(element));
                Ok(Value::List(elements.collect::<Evaluated<Vec<_>>>()?.into()))
            }
            Expr::Map(map) => {
                let mut made = std::collections::HashMap::with_capacity(map.entries.len());
                for entry in &map.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else {
                        return failed("it cannot be evaluated");
                    };
                    let key = key(self.value(&entry.key)?)?;
                    if made.insert(key, self.value(&entry.value)?).is_some() {
                        return failed("a map has the same key twice");
                    }
                }
                Ok(Value::Map(Map { map: made.into() }))
            }
            Expr::Call(call) => self.call(call),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::Struct(_) | Expr::Unspecified => failed("it cannot be evaluated"),
        }
    }

    fn literal(&mut self, literal: &LiteralValue) -> Evaluated {
        Ok(match literal {
            LiteralValue::Null => Value::Null,
            LiteralValue::Boolean(value) => Value::Bool(*value.inner()),
            LiteralValue::Int(value) => Value::Int(*value.inner()),
            LiteralValue::UInt(value) => Value::UInt(*value.inner()),
            LiteralValue::Double(value) => Value::Float(*value.inner()),
            LiteralValue::String(value) => {
                self.pay(value.inner().len() / 32)?;
                value.inner().into()
            }
            LiteralValue::Bytes(_) => return failed("it cannot be evaluated"),
        })
    }

    fn variable(&self, name: &str) -> Evaluated {
        let bound = self.variables.iter().rev().find(|(bound, _)| *bound == name);
        if let Some((_, value)) = bound {
            return Ok(value.clone());
        }
        match name {
            "type" => Ok(self.subject.event_type.clone()),
            "source" => Ok(self.subject.source.clone()),
            "occurred_at" => Ok(self.subject.occurred_at.clone()),
            "payload" => self.subject.payload().map_err(Stop::Failed),
            _ => failed(format!("there is no `{name}`")),
        }
    }

    fn truth(&mut self, expression: &'a IdedExpr) -> Evaluated<bool> {
        match self.value(expression)? {
            Value::Bool(truth) => Ok(truth),
            other => failed(format!("{} is not true or false", kind(&other))),
        }
    }

    /// `&&` and `||`: what decides makes up for a failure on the other side, whichever side that is.
    fn either(&mut self, deciding: bool, left: &'a IdedExpr, right: &'a IdedExpr) -> Evaluated<bool> {
        let left = match self.truth(left) {
            Ok(truth) if truth == deciding => return Ok(deciding),
            Err(Stop::TooCostly) => return Err(Stop::TooCostly),
            left => left,
        };
        match (left, self.truth(right)) {
            (_, Err(Stop::TooCostly)) => Err(Stop::TooCostly),
            (_, Ok(truth)) if truth == deciding => Ok(deciding),
            (Err(stop), _) | (_, Err(stop)) => Err(stop),
            (Ok(_), Ok(truth)) => Ok(truth),
        }
    }

    fn call(&mut self, call: &'a CallExpr) -> Evaluated {
        let name = call.func_name.as_str();
        if let Some(target) = &call.target {
            let target = self.value(target)?;
            let arguments = self.values(&call.args)?;
            return self.function(name, Some(target), arguments);
        }
        match (name, call.args.as_slice()) {
            (operators::CONDITIONAL, [condition, then, otherwise]) => {
                if self.truth(condition)? {
                    self.value(then)
                } else {
                    self.value(otherwise)
                }
            }
            (operators::LOGICAL_AND, [left, right]) => self.either(false, left, right).map(Value::Bool),
            (operators::LOGICAL_OR, [left, right]) => self.either(true, left, right).map(Value::Bool),
            (operators::LOGICAL_NOT, [operand]) => Ok(Value::Bool(!self.truth(operand)?)),
            (operators::NEGATE, [operand]) => {
                let operand = self.value(operand)?;
                self.negated(&operand)
            }
            (operator, [left, right]) if !is_function(operator) => {
                let left = self.value(left)?;
                let right = self.value(right)?;
                self.operated(operator, left, right)
            }
            (function, arguments) => {
                let arguments = self.values(arguments)?;
                self.function(function, None, arguments)
            }
        }
    }

    fn values(&mut self, expressions: &'a [IdedExpr]) -> Evaluated<Vec<Value>> {
        expressions
            .iter()
            .map(|expression| self.value(expression))
            .collect()
    }

    /// What the macros are expanded to. Which one it was is seen by the loop's step.
    fn comprehension(&mut self, comprehension: &'a ComprehensionExpr) -> Evaluated {
        let range = self.value(&comprehension.iter_range)?;
        let items = self.items(range)?;
        self.variables.push((&comprehension.iter_var, Value::Null));
        let looped = self.looped(&comprehension.loop_step, &items);
        self.variables.pop();
        looped
    }

    fn looped(&mut self, step: &'a IdedExpr, items: &[Value]) -> Evaluated {
        let Expr::Call(call) = &step.expr else {
            return failed("it cannot be evaluated");
        };
        match (call.func_name.as_str(), call.args.as_slice()) {
            (operators::LOGICAL_AND, [_, test]) => self.decided(false, test, items),
            (operators::LOGICAL_OR, [_, test]) => self.decided(true, test, items),
            (operators::ADD, [_, element]) => self.collected(None, element, items),
            (operators::CONDITIONAL, [test, counted, _]) => match &counted.expr {
                Expr::Call(counted) => match counted.args.as_slice() {
                    [_, element] if matches!(element.expr, Expr::List(_)) => {
                        self.collected(Some(test), element, items)
                    }
                    _ => self.exactly_one(test, items),
                },
                _ => failed("it cannot be evaluated"),
            },
            _ => failed("it cannot be evaluated"),
        }
    }

    /// `all` and `exists`: an element that decides makes up for those that fail.
    fn decided(&mut self, deciding: bool, test: &'a IdedExpr, items: &[Value]) -> Evaluated {
        let mut decided = Ok(Value::Bool(!deciding));
        for item in items {
            self.bind(item)?;
            match self.truth(test) {
                Ok(truth) if truth == deciding => return Ok(Value::Bool(deciding)),
                Ok(_) => {}
                Err(Stop::TooCostly) => return Err(Stop::TooCostly),
                Err(stop) => decided = Err(stop),
            }
        }
        decided
    }

    /// `map` and `filter`.
    fn collected(&mut self, test: Option<&'a IdedExpr>, element: &'a IdedExpr, items: &[Value]) -> Evaluated {
        let Expr::List(element) = &element.expr else {
            return failed("it cannot be evaluated");
        };
        let mut collected = Vec::new();
        for item in items {
            self.bind(item)?;
            if let Some(test) = test
                && !self.truth(test)?
            {
                continue;
            }
            for element in &element.elements {
                collected.push(self.value(element)?);
            }
        }
        Ok(Value::List(collected.into()))
    }

    /// `exists_one`.
    fn exactly_one(&mut self, test: &'a IdedExpr, items: &[Value]) -> Evaluated {
        let mut found = 0_usize;
        for item in items {
            self.bind(item)?;
            found += usize::from(self.truth(test)?);
        }
        Ok(Value::Bool(found == 1))
    }

    /// The innermost variable is this now.
    fn bind(&mut self, item: &Value) -> Evaluated<()> {
        self.pay(1)?;
        if let Some((_, value)) = self.variables.last_mut() {
            *value = item.clone();
        }
        Ok(())
    }

    /// What a macro goes through: a list's elements, or a map's keys, in an order that is always the same.
    fn items(&mut self, range: Value) -> Evaluated<std::sync::Arc<Vec<Value>>> {
        match range {
            Value::List(list) => Ok(list),
            Value::Map(map) => {
                self.pay(map.map.len())?;
                let mut keys: Vec<&Key> = map.map.keys().collect();
                keys.sort_unstable();
                Ok(keys.into_iter().map(Value::from).collect::<Vec<_>>().into())
            }
            other => failed(format!("{} has no elements", kind(&other))),
        }
    }
}

/// Whether a call of two arguments is of a function, and not of an operator.
fn is_function(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic())
}

fn member<'v>(value: &'v Value, name: &str) -> Evaluated<Option<&'v Value>> {
    match value {
        Value::Map(map) => Ok(map.get(&KeyRef::String(name))),
        other => failed(format!("there is no `{name}` in {}", kind(other))),
    }
}

pub(super) fn key(value: Value) -> Evaluated<Key> {
    let kind = kind(&value);
    value
        .try_into()
        .or_else(|_| failed(format!("{kind} cannot be a key")))
}

/// What a value is, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::List(_) => "a list",
        Value::Map(_) => "a map",
        Value::Int(_) => "an int",
        Value::UInt(_) => "a uint",
        Value::Float(_) => "a double",
        Value::String(_) => "a string",
        Value::Bool(_) => "a bool",
        Value::Duration(_) => "a duration",
        Value::Timestamp(_) => "a timestamp",
        Value::Null => "null",
        _ => "something else",
    }
}
