"""What stands between the browser and Streamlit."""
