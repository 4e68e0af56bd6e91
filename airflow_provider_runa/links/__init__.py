"""Extra links of tasks in Airflow's UI. For payout links, see ``utils.payout_links``."""
