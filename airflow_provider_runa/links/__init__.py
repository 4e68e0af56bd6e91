"""Links from a task in Airflow's UI to other places. For payout links, see ``utils.payout_links``."""
