"""What functions of a DAG become by decorating them."""
