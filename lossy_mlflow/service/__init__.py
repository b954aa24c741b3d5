"""The tracking server as a group keeps it: started, backed up, checked, upgraded; and its clients' doctor."""
