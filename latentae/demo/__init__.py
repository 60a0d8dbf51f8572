"""A local page that shows what models make of an image: this is `latentae demo`.

``compute`` turns images into pictures and numbers, ``page`` lays them out with Gradio, and ``serve`` opens
the models and runs the page. ``page`` alone imports Gradio, after ``serve`` has set its environment.
"""
