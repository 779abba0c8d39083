//! The checks: each takes a store that was just migrated and holds nothing, and panics where it does not do as it says.

pub(crate) mod announcements;
pub(crate) mod audit_log;
pub(crate) mod deliveries;
pub(crate) mod erasures;
pub(crate) mod events;
pub(crate) mod feed;
pub(crate) mod insight;
pub(crate) mod intake;
pub(crate) mod keeper;
pub(crate) mod lanes;
pub(crate) mod limits;
pub(crate) mod organizations;
pub(crate) mod outcomes;
pub(crate) mod pauses;
pub(crate) mod pulls;
pub(crate) mod removals;
pub(crate) mod replays;
pub(crate) mod statistics;
pub(crate) mod subscriptions;
pub(crate) mod test_pushes;
pub(crate) mod world;

/// Makes a test of each check. `$run` is called with a check, and gives it a store.
macro_rules! conformance_tests {
    ($run:path) => {
        $crate::conformance::conformance_tests! { $run;
            organizations: created_with_inbox_and_key, renamed, keys_are_listed_newest_first,
                keys_grant_until_they_end, rotating_without_overlap_ends_the_old_key,
                rotating_with_overlap_ends_the_old_key_later, rotated_by_many_it_has_one_successor, rotating_gives_no_scope_that_is_not_held,
                the_last_use_is_noted_rarely, a_hash_belongs_to_one_key;
            subscriptions: created_and_read_back, listed_in_pages, pages_have_a_weight, patched_by_version, changes_raise_the_version,
                enabling_clears_the_reason, deleted_ones_are_gone, one_webhook_an_organization,
                in_force_leaves_out_unknown_organizations, disabled_by_version, secrets_are_rotated,
                secrets_are_sealed_anew, to_be_enabled_makes_another_subscriber, a_change_by_what_was_sealed_before_is_a_conflict, filters_have_bounds_together,
                an_organization_has_so_many_subscriptions, filters_made_at_once_keep_the_bound;
            intake: payloads_are_kept_byte_for_byte, a_frame_delivered_twice_changes_nothing,
                a_stale_plan_writes_nothing, an_unknown_organization_is_stale, duplicates_become_aliases,
                duplicates_within_a_batch, keys_belong_to_an_organization, repeats_count_once,
                repeats_of_aliases_count_for_the_first, one_event_a_key_under_concurrency,
                frames_repeated_under_concurrency, order_follows_intake, a_former_id_leads_to_the_event,
                a_former_id_of_a_repeat_leads_to_the_first, a_former_id_is_stored_with_its_event_or_not_at_all,
                put_back_by_many_it_is_stored_once, room_is_made_for_what_is_kept, a_rehearsal_leaves_nothing;
            events: another_organizations_are_not_found, listed_both_ways, filtered_by_status, filtered_by_failure,
                found_as_they_are_shown, pulled_ones_are_found_as_they_are_shown, filtered_by_type, pages_are_bounded_in_bytes,
                pages_are_bounded_in_deliveries, the_last_attempts_are_shown, counted_no_further_than_asked,
                a_rare_status_takes_pages_and_none_looks_far, readers_skip_nothing, set_aside_and_forgotten,
                set_aside_again_is_counted;
            deliveries: held_from_intake, leases_run_out, an_ended_lease_does_not_come_back, resigning_frees,
                claimed_oldest_first, only_served_lanes_are_claimed, claims_never_overlap,
                claims_of_workers_that_just_came_never_overlap, lanes_go_round,
                released_and_still_held, backlog_is_counted, claims_are_bounded_by_bytes, what_was_parked_goes_in_order;
            lanes: a_lane_has_one_owner, many_want_a_lane_and_one_has_it, taken_in_order_up_to_what_waits,
                only_its_owner_takes_in_order, what_was_tried_before_is_in_order_too, order_holds_beside_intakes,
                claims_in_order_are_bounded_by_bytes, lanes_are_handed_over,
                owners_are_told;
            outcomes: success_is_recorded, failures_are_logged, dead_letters, outcomes_apply_once,
                outcomes_of_the_stalled_do_not_apply, large_mixed_batches, acknowledged, acknowledged_beats_outcome,
                acknowledging_leaves_what_was_cancelled, only_open_pushes_have_a_next_attempt;
            pulls: leased_oldest_first, only_pull_subscriptions_are_pulled_from, a_lease_runs_out,
                what_ran_out_comes_after_what_was_due, acknowledged_alone, leases_are_released_and_extended,
                whatever_else_ends_a_delivery_ends_its_lease, retention_ends_what_is_leased, pulls_are_bounded_by_bytes,
                pulls_never_overlap, lists_show_what_is_leased, who_waits_is_told, any_order_of_operations;
            replays: one_is_opened_again, one_is_called_off, a_replay_gets_on_step_by_step, a_replay_is_called_off,
                a_window_in_a_long_history_is_found_at_once, a_replay_looks_at_no_more_than_there_was,
                what_has_another_id_is_found_by_when_it_was_accepted, whoever_cannot_get_on_lets_others_by,
                events_of_many_dead_letters_are_not_passed_over,
                opening_is_announced, cancelling_what_a_worker_holds_is_announced, what_is_opened_again_is_in_order;
            erasures: what_is_stored_is_erased_in_place, what_a_worker_holds_is_called_off,
                erased_by_any_of_its_ids_and_by_no_one_else, ids_that_cannot_come_are_not_found,
                what_is_on_its_way_is_stored_erased, a_repeat_on_its_way_erases_the_first,
                what_is_erased_is_not_opened_again, what_was_set_aside_is_forgotten,
                erasing_beside_intakes_misses_nothing;
            feed: searched_by_type, searched_by_time, searched_by_status, a_search_is_bounded_in_work,
                followed_in_order, followed_by_time_and_status, a_place_is_had_by_any_id, who_follows_misses_nothing;
            removals: an_organization_goes_with_everything, removed_by_many_it_is_counted_once,
                organizations_are_listed_newest_first, keys_end_with_their_organization, nothing_is_stored_after_all,
                an_organization_keeps_its_events_for_shorter;
            audit_log: a_change_is_by_whoever_makes_it, what_changes_nothing_is_not_in_the_log, it_is_kept_for_a_while;
            announcements: a_dead_letter_is_announced_with_its_outcome, disabling_is_announced,
                whether_what_fails_begets_is_kept,
                failing_is_timed_from_the_first, failing_ends_with_a_change,
                what_has_not_failed_for_long_is_not_disabled;
            insight: deliveries_are_listed_newest_first, deliveries_are_filtered, what_is_pulled_is_in_flight_while_it_is_leased, deliveries_since,
                a_rare_status_takes_pages;
            statistics: what_workers_count_is_added_up, circuits_count_while_their_worker_lives,
                a_backlog_is_counted_with_its_age, a_backlog_is_counted_to_a_cap, the_fleet_is_counted_in_bands;
            limits: what_was_taken_is_taken_once, what_is_owed_has_an_end, a_bucket_refills_while_it_is_taken_from,
                nodes_hear_what_others_want, what_is_told_late_is_passed_over,
                a_node_tells_many_times_at_once_and_is_believed_once, words_from_before_the_store_was_away_count,
                what_refilled_is_there_for_who_tells_later, nodes_come_and_go, nodes_tell_at_once_and_nothing_is_lost,
                usage_is_added_up;
            test_pushes: each_is_taken_once_oldest_first, many_take_and_each_gets_its_own,
                so_many_of_an_organization_wait, asking_is_announced;
            pauses: the_longest_counts_and_is_announced, a_pause_ends_by_its_time;
            keeper: migrating_again_changes_nothing, changes_are_announced, deleted_subscriptions_are_cancelled,
                what_retention_ends_is_expired,
                what_expires_is_announced_once_a_subscription, keeping_concurrently, the_first_check_value_stays,
                what_was_set_aside_goes_with_retention;
        }
    };
    ($run:path; $($module:ident: $($check:ident),+;)+) => {$(
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $check() {
                    $run(|store| Box::pin(async move {
                        $crate::conformance::$module::$check(&store).await;
                    })).await;
                }
            )+
        }
    )+};
}
pub(crate) use conformance_tests;
