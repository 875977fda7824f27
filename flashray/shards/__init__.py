"""Archives in shards: many images in one WebDataset tar or Parquet file, read one by one and written as a whole."""
