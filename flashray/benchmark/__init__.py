"""What the methods are worth: experiments over grids of (task, method) cells, and measurements of speed."""
