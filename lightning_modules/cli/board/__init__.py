"""What TensorBoard shows of a run beside single curves: a page of charts, and a row among runs."""
