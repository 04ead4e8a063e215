"""Spark jobs; each needs PySpark alone and can be given to spark-submit as it is."""
