"""What people read: the HTML page of a run, and Markdown tables."""
