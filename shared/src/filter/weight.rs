//! How much memory a filter takes once it is read. What its patterns take is theirs to say.

use cel::{
    IdedExpr,
    common::ast::{ComprehensionExpr, EntryExpr, Expr, IdedEntryExpr, LiteralValue},
};

/// What an allocation takes beside what was asked for.
const ALLOCATION: usize = 16;

/// Gives back what an expression has reserved and does not use, and says how many bytes it takes beside itself. As deep as
/// expressions may go.
pub(super) fn settle(expression: &mut IdedExpr) -> usize {
    match &mut expression.expr {
        Expr::Literal(LiteralValue::String(text)) => ALLOCATION + text.inner().len(),
        Expr::Ident(name) => text(name),
        Expr::Select(select) => boxed(&mut select.operand) + text(&mut select.field),
        Expr::List(list) => listed(&mut list.elements),
        Expr::Map(map) => {
            map.entries.shrink_to_fit();
            let entries = map.entries.iter_mut().map(|entry| match &mut entry.expr {
                EntryExpr::MapEntry(entry) => settle(&mut entry.key) + settle(&mut entry.value),
                EntryExpr::StructField(field) => text(&mut field.field) + settle(&mut field.value),
            });
            let beneath: usize = entries.sum();
            ALLOCATION + map.entries.len() * size_of::<IdedEntryExpr>() + beneath
        }
        Expr::Call(call) => {
            let target = call.target.as_mut().map_or(0, |target| boxed(target));
            text(&mut call.func_name) + target + listed(&mut call.args)
        }
        Expr::Comprehension(comprehension) => {
            let ComprehensionExpr {
                iter_range,
                iter_var,
                iter_var2,
                accu_var,
                accu_init,
                loop_cond,
                loop_step,
                result,
            } = &mut **comprehension;
            let names = text(iter_var) + text(accu_var) + iter_var2.as_mut().map_or(0, text);
            let parts = [iter_range, accu_init, loop_cond, loop_step, result];
            ALLOCATION + size_of::<ComprehensionExpr>() + names + parts.map(settle).iter().sum::<usize>()
        }
        Expr::Literal(_) | Expr::Struct(_) | Expr::Unspecified => 0,
    }
}

fn text(text: &mut String) -> usize {
    text.shrink_to_fit();
    ALLOCATION + text.len()
}

fn boxed(expression: &mut IdedExpr) -> usize {
    ALLOCATION + size_of::<IdedExpr>() + settle(expression)
}

fn listed(expressions: &mut Vec<IdedExpr>) -> usize {
    expressions.shrink_to_fit();
    let beneath: usize = expressions.iter_mut().map(settle).sum();
    ALLOCATION + expressions.len() * size_of::<IdedExpr>() + beneath
}
