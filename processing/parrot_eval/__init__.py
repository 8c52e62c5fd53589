"""Measuring multilingual ability: benchmarks, how they are asked, what is read in answers, scores and reports."""
