"""Making English conversations multilingual, in the order in which a row goes through it.

- `segments`: what of a text is translated, and what survives as it is.
- `translators`, with `seq2seq` and `endpoint`: who translates.
- `quality`: which translations look wrong; `quality_report`: how many do, per language.
- `parts`: some thousand rows, translated, checked and sorted.
- `shards`: all rows, written in files by any number of machines.
- `review` and `calibration`: what people correct, and how it comes back.
"""
